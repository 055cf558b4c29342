-- Lists members of a sorted set by score. It removes members that are too long for a name or not text, because one may be
-- larger than the memory of a worker.
-- Called by jobs/scripts/sweep.py, names.
-- KEYS: the sorted set
-- ARGV: highest score, number of members to skip, most members, '1' for the highest scores first, most bytes of a name
-- Returns the names.
local reverse = ARGV[4] == '1'
local first, last = reverse and ARGV[1] or '-inf', reverse and '-inf' or ARGV[1]
local range = {'BYSCORE', 'LIMIT', ARGV[2], ARGV[3]}
if reverse then range[#range + 1] = 'REV' end
local page, found, foreign = redis.call('ZRANGE', KEYS[1], first, last, unpack(range)), {}, {}
for _, name in ipairs(page) do
  local list = #name <= tonumber(ARGV[5]) and is_text(name) and found or foreign
  list[#list + 1] = name
end
in_slices(#foreign, function(from, to) redis.call('ZREM', KEYS[1], unpack(foreign, from, to)) end)
return found
