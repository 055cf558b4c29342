-- Marks a batch as whole: no more fetches will come.
-- KEYS: batch, its lanes, its digests, batches
-- ARGV: batch id, finished TTL ms, unfinished TTL ms
redis.call('HSETNX', KEYS[1], 'total', 0)
if redis.call('HSETNX', KEYS[1], 'created_ms', int(now_ms())) == 1 then
  redis.call('ZADD', KEYS[4], redis.call('HGET', KEYS[1], 'created_ms'), ARGV[1])
end
local ttl = seal(KEYS[1], ARGV[2], ARGV[3])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl) end
return 1
