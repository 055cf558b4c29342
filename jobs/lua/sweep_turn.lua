-- Gives one worker of the fleet the turn to sweep, once in an interval. Any other value at the key is overwritten.
-- Called by jobs/scripts/sweep.py, sweep_turn.
-- KEYS: swept
-- ARGV: interval ms, TTL ms
-- Returns 1, or 0 if a worker has had its turn within the interval.
local now, found = now_ms(), redis.pcall('GET', KEYS[1])
local last = type(found) == 'string' and #found <= COUNTER_CHARS and number(found) or 0
if last <= now and now - last < tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], int(now), 'PX', ARGV[2])
return 1
