-- Requests that the owner of a lane end all fetches of a cancelled batch. A scheduled lane becomes due now.
-- Called by jobs/scripts/batches.py, cancel_in_lanes.
-- KEYS: lane, its cancelled batches, cancels, attention, serial
-- ARGV: lane name, batch id, unfinished TTL ms, grace ms
-- Returns {generation, 0} if the lane needs a notification, else {}.
for i, kind in ipairs({'hash', 'set', 'counter', 'zset', 'counter'}) do must_be(kind, KEYS[i]) end
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'held' and state ~= 'scheduled' then return {} end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('INCR', KEYS[3])
return schedule_now(KEYS[1], KEYS[4], KEYS[5], ARGV[1], tonumber(ARGV[4]))
