-- Finds lanes that another program may have taken out of the schedule.
-- Called by jobs/scripts/repair.py, unscheduled.
-- KEYS: attention, lanes
-- ARGV: how many of the lanes, the first ones, have fetches; the lanes' names
-- Returns the names of those that are held or scheduled without a place in the schedule, or idle with fetches.
local found = {}
for i = 2, #KEYS do
  local state = redis.pcall('HGET', KEYS[i], 'state') -- a conflicting key is repaired by the call that meets it
  local name = ARGV[i]
  local is_busy = state == 'held' or state == 'scheduled'
  if is_busy and not redis.call('ZSCORE', KEYS[1], name) or not is_busy and i <= ARGV[1] + 1 then
    found[#found + 1] = name
  end
end
return found
