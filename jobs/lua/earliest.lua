-- Clears or lowers the earliest deadline of the fetches that wait in a lane. It is cleared before a removal scan, and
-- set after it.
-- Called by jobs/scripts/lanes.py, earliest.
-- KEYS: lane
-- ARGV: token, Unix ms (0: no fetch has a deadline; '': clear)
-- Returns 1, or 0 if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], 'earliest_ms')
elseif ARGV[2] ~= '0' and tonumber(ARGV[2]) < deadline(redis.call('HGET', KEYS[1], 'earliest_ms')) then
  redis.call('HSET', KEYS[1], 'earliest_ms', int(ARGV[2]))
end
return 1
