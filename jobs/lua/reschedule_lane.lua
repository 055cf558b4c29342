-- Wakes a lane that is due later, because something that parks it may have changed.
-- Called by jobs/scripts/lanes.py, reschedule_lanes.
-- KEYS: lane, attention, serial
-- ARGV: lane name, grace ms
-- Returns {generation, 0} when the lane must be woken, {} when not.
return wake_now(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
