-- Marks a batch as whole: no more fetches will come.
-- KEYS: batch, results
-- ARGV: finished TTL ms, unfinished TTL ms
redis.call('HSETNX', KEYS[1], 'total', 0)
redis.call('HSETNX', KEYS[1], 'created_ms', int(now_ms()))
redis.call('HSET', KEYS[1], 'sealed', 1)
local batch = redis.call('HMGET', KEYS[1], 'total', 'done')
local ttl = (tonumber(batch[2]) or 0) >= tonumber(batch[1]) and ARGV[1] or ARGV[2]
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return 1
