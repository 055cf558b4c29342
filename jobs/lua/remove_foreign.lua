-- Removes members of a sorted set that are too long for a name, not text, or have none of their keys.
-- Called by jobs/scripts/sweep.py, remove_foreign.
-- KEYS: the sorted set
-- ARGV: lowest score, highest score, number of members to skip, most to check, most bytes of a name, new score of the
--       other members ('' to keep theirs); then for each key that a member may have: the parts before and after its name
-- Returns {number checked, number removed, the beginning of the first one removed or '', number with the new score}.
local page = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', ARGV[3], ARGV[4])
local foreign, moved = {}, 0
for _, name in ipairs(page) do
  local is_valid = #name <= tonumber(ARGV[5]) and is_text(name)
  if is_valid then
    local its_keys = {}
    for i = 7, #ARGV, 2 do its_keys[#its_keys + 1] = ARGV[i] .. name .. ARGV[i + 1] end
    is_valid = redis.call('EXISTS', unpack(its_keys)) > 0
  end
  if not is_valid then
    foreign[#foreign + 1] = name
  elseif ARGV[6] ~= '' then
    redis.call('ZADD', KEYS[1], ARGV[6], name)
    moved = moved + 1
  end
end
in_slices(#foreign, function(first, last) redis.call('ZREM', KEYS[1], unpack(foreign, first, last)) end)
return {#page, #foreign, string.sub(foreign[1] or '', 1, SHOWN_CHARS), moved}
