-- Counts the fleet's backlog again from its lanes.
-- Called by jobs/scripts/repair.py, recount.
-- KEYS: backlog, lanes
-- Returns how many fetches have no result.
local open = 0
for i = 2, #KEYS do
  local found = redis.pcall('HGET', KEYS[i], 'open')
  if type(found) == 'string' then open = open + number(found) end
end
open = math.max(0, open)
redis.call('SET', KEYS[1], int(open))
return open
