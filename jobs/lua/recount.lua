-- Recomputes the fleet's backlog from its lanes.
-- Called by jobs/scripts/repair.py, recount.
-- KEYS: backlog, lanes
-- Returns the number of fetches without a result.
local open = 0
for i = 2, #KEYS do
  local found = redis.pcall('HGET', KEYS[i], 'open')
  if type(found) == 'string' then open = open + number(found) end
end
open = math.max(0, open)
redis.call('SET', KEYS[1], int(open))
return open
