-- Restores the place of a lane in the schedule after a conflicting value at one of its keys was quarantined.
-- Called by jobs/scripts/repair.py, repair_lanes.
-- KEYS: lane, claimed, later, returned, high, normal, low, attention, serial
-- ARGV: lane name, lease ms
-- Returns 1 if the lane was rescheduled because its state was lost, else 0.
local lane = redis.call('HMGET', KEYS[1], 'state', 'due_ms')
local state, now = lane[1], now_ms()
if state == 'held' or state == 'scheduled' then
  local due = state == 'held' and now + ARGV[2] or math.max(now, number(lane[2]))
  if not redis.call('ZSCORE', KEYS[8], ARGV[1]) then redis.call('ZADD', KEYS[8], int(due), ARGV[1]) end
  return 0
end
local waits = count_fetches(2)
if waits == 0 then return 0 end
-- The backlog may not include them: another program may have written some.
redis.call('HSET', KEYS[1], 'open', waits, 'estimated', 1)
schedule(KEYS[1], KEYS[8], KEYS[9], ARGV[1], now, 0)
return 1
