-- Ends the lease of a lane whose owner is known to be dead. The next sweep then reclaims the lane.
-- Called by jobs/scripts/sweep.py, end_leases.
-- KEYS: lane, attention
-- ARGV: lane name, owner
-- Returns 1, or 0 if another worker holds the lane or none does.
local lane = redis.call('HMGET', KEYS[1], 'state', 'owner')
if lane[1] ~= 'held' or lane[2] ~= ARGV[2] then return 0 end
return redis.call('ZADD', KEYS[2], 'XX', 'CH', int(now_ms()), ARGV[1])
