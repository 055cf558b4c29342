-- The earliest deadline of what waits in a lane: forgotten before the lane is looked through, noted after.
-- Called by jobs/scripts/lanes.py, earliest.
-- KEYS: lane
-- ARGV: token, Unix ms (0: nothing has one; '' to forget)
-- Returns 1, or 0 to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], 'earliest_ms')
elseif ARGV[2] ~= '0' then
  note_deadline(KEYS[1], tonumber(ARGV[2]))
end
return 1
