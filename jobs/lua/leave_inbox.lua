-- The worker that empties the inbox makes way.
-- KEYS: intake
-- ARGV: token
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then redis.call('HSET', KEYS[1], 'until_ms', 0) end
return 1
