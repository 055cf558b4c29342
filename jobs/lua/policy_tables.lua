-- Lists the policy tables set at run time. It skips fields that are longer than any that fetchfleet writes.
-- Called by jobs/scripts/host_control.py, policy_tables.
-- KEYS: policy
-- ARGV: most bytes of a field's name, most bytes of its value
-- Returns {field, value …}.
local found, listed = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #found, 2 do
  if #found[i] <= tonumber(ARGV[1]) and #found[i + 1] <= tonumber(ARGV[2]) then
    listed[#listed + 1], listed[#listed + 2] = found[i], found[i + 1]
  end
end
return listed
