-- The sweep: re-wakes a lane whose owner's lease has lapsed or whose hand-off was lost.
-- Called by jobs/scripts/lanes.py, reclaim_lanes.
-- KEYS: lane, attention, serial, claimed, later, returned, high, normal, low
-- ARGV: lane name, grace ms
-- Returns {generation, owner that was lost or ''}; {} when the lane needs nothing.
local now = now_ms()
local due = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]))
if not due or due > now then return {} end
local lane = redis.call('HMGET', KEYS[1], 'state', 'owner')
-- An idle lane has nothing in it. Where something else has written what its state is, that is not taken for granted.
if lane[1] ~= 'held' and lane[1] ~= 'scheduled' and waits_in(4) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
local lost = lane[1] == 'held' and lane[2] or ''
return {schedule(KEYS[1], KEYS[2], KEYS[3], ARGV[1], now, tonumber(ARGV[2])), lost}
