-- Moves a claimed fetch to the lane of its redirect target, whose limits apply from then on.
-- Called by jobs/scripts/lanes.py, transfer.
-- KEYS: lane, claimed, attention, serial, other lane, other list, batch, its lanes
-- ARGV: token, id, serialized entry, other lane's name, grace ms
-- Returns {1}, or {1, generation, ms until due} if the other lane needs a notification; {0} if the fetch stays
-- because its batch is cancelled; {} if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return {} end
for i, kind in ipairs({'hash', 'hash', 'zset', 'counter', 'hash', 'list', 'hash', 'set'}) do must_be(kind, KEYS[i]) end
if redis.call('HEXISTS', KEYS[7], 'cancel_ms') == 1 then return {0} end
if redis.call('HDEL', KEYS[2], ARGV[2]) == 0 then return {1} end
redis.call('RPUSH', KEYS[6], ARGV[3])
redis.call('SADD', KEYS[8], ARGV[4])
redis.call('HSET', KEYS[1], 'open', int(number(redis.call('HGET', KEYS[1], 'open')) - 1))
local now, name = now_ms(), ARGV[4]
local generation, due = note_added(KEYS[5], KEYS[4], 1, deadline_of(ARGV[3]), now)
if generation then
  redis.call('ZADD', KEYS[3], int(due + ARGV[5]), name)
  return {1, generation, due - now}
end
-- No sweep would see a lane whose place in the schedule another program has removed.
redis.call('ZADD', KEYS[3], 'NX', int(now + ARGV[5]), name)
return {1}
