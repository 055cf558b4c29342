-- Renews the lease of the worker that empties the inboxes; 0 ms releases it.
-- Called by jobs/scripts/inbox.py, inbox_renew.
-- KEYS: intake
-- ARGV: token, lease ms
-- Returns 1, or 0 if another worker has the lease.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until_ms', int(now_ms() + ARGV[2]))
return 1
