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
count_open(KEYS[1], nil, -1)
count_open(KEYS[5], nil, 1)
note_deadline(KEYS[5], deadline_of(ARGV[3]))
local notification =
  schedule_for_new(KEYS[5], KEYS[3], KEYS[4], ARGV[4], deadline_of(ARGV[3]), now_ms(), tonumber(ARGV[5]))
if notification then return {1, notification[1], notification[2]} end
return {1}
