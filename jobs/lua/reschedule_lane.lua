-- Makes a lane due now that is due later, because its cool-down or policy may have changed.
-- Called by jobs/scripts/lanes.py, reschedule_lanes.
-- KEYS: lane, attention, serial
-- ARGV: lane name, grace ms
-- Returns {generation, 0} if the lane needs a notification, else {}.
return schedule_now(KEYS[1], KEYS[2], KEYS[3], ARGV[1], tonumber(ARGV[2]))
