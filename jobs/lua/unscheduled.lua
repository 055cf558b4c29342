-- Finds lanes that another program may have removed from the schedule.
-- Called by jobs/scripts/repair.py, unscheduled.
-- KEYS: attention, lanes
-- ARGV: number of lanes, at the beginning, that have fetches; names of the lanes
-- Returns the names of lanes that are held or scheduled but missing in the schedule, or idle with fetches.
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
