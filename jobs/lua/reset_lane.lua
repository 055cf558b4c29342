-- Requests that the present or next owner of a lane reset what it has learned about the host. The lane and its retries
-- become due now.
-- Called by jobs/scripts/host_control.py, reset_lanes.
-- KEYS: lane, later, attention, serial, resets
-- ARGV: lane name, operator, grace ms, most retries to make due
-- Returns {state, number of retries made due, generation, 0}, without the last two if the lane needs no notification; {}
-- if the lane does not exist.
for i, kind in ipairs({'hash', 'zset', 'zset', 'counter', 'counter'}) do must_be(kind, KEYS[i]) end
local state = redis.call('HGET', KEYS[1], 'state')
if not state then return {} end
local now = now_ms()
local later = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. int(now), '+inf', 'LIMIT', 0, ARGV[4])
for _, entry in ipairs(later) do redis.call('ZADD', KEYS[2], int(now), entry) end
redis.call('HSET', KEYS[1], 'reset', ARGV[2])
redis.call('INCRBY', KEYS[5], 1)
local reply = {state, #later}
if state ~= 'held' then
  redis.call('HSET', KEYS[1], 'shut_until_ms', 0, 'why', '')
  for _, value in ipairs(schedule_now(KEYS[1], KEYS[3], KEYS[4], ARGV[1], tonumber(ARGV[3]))) do
    reply[#reply + 1] = value
  end
end
return reply
