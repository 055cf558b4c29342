-- Clears or lowers the earliest deadline of a lane's waiting fetches: cleared before a removal scan, set after it.
-- Called by jobs/scripts/lanes.py, earliest.
-- KEYS: lane
-- ARGV: token, Unix ms (0: no fetch has a deadline; '': clear)
-- Returns 1, or 0 if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], 'earliest_ms')
elseif ARGV[2] ~= '0' then
  note_deadline(KEYS[1], tonumber(ARGV[2]))
end
return 1
