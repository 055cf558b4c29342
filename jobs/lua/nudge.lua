-- Wakes a lane that is due later, because something that parks it may have changed.
-- KEYS: lane, attention, serial
-- ARGV: lane name, grace ms
-- Returns {generation, 0} when the lane must be woken, {} when not.
local lane = redis.call('HMGET', KEYS[1], 'state', 'due_ms')
local now = now_ms()
if lane[1] ~= 'scheduled' or tonumber(lane[2]) <= now then return {} end
return {schedule(KEYS[1], KEYS[2], KEYS[3], ARGV[1], now, tonumber(ARGV[2])), 0}
