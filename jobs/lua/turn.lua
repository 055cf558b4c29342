-- Lets one worker of the fleet do a task in each interval. A value of another program at the key is overwritten.
-- Called by jobs/scripts/sweep.py, take_turn.
-- KEYS: the time at which a worker did the task
-- ARGV: interval ms, TTL ms
-- Returns 1, or 0 if a worker has done it within the interval.
local now, found = now_ms(), redis.pcall('GET', KEYS[1])
local last = type(found) == 'string' and #found <= COUNTER_CHARS and number(found) or 0
if last <= now and now - last < tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], int(now), 'PX', ARGV[2])
return 1
