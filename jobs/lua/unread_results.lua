-- Counts the results that each consumer group has not acknowledged. Changes nothing.
-- Called by jobs/scripts/views.py, unread_results.
-- KEYS: the stream of all results
-- ARGV: most groups to return, most bytes of a name, most results to count for a group whose lag Redis does not know
-- Returns {name, number of results that are not delivered, number delivered and not acknowledged} for each group.
local found, groups = redis.pcall('XINFO', 'GROUPS', KEYS[1]), {}
if found.err then
  if string.find(found.err, 'NOPERM') or string.find(found.err, 'permission') then return found end
  return {}
end
for i = 1, math.min(#found, tonumber(ARGV[1])) do
  local group = {}
  for j = 1, #found[i], 2 do group[found[i][j]] = found[i][j + 1] end
  local lag = group['lag']
  if type(lag) ~= 'number' then lag = #redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', ARGV[3]) end
  if #group['name'] <= tonumber(ARGV[2]) then groups[#groups + 1] = {group['name'], lag, group['pending']} end
end
return groups
