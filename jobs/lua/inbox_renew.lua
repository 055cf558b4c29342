-- Renews the lease of the worker that empties the inbox; 0 ms gives the lease up.
-- Called by jobs/scripts/inbox.py, inbox_renew.
-- KEYS: intake
-- ARGV: token, lease ms
-- Returns 1, or 0 if another worker empties the inbox.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until_ms', int(now_ms() + ARGV[2]))
return 1
