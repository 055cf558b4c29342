-- Removes members of a sorted set that stand for nothing: too long for a name, no text, or without a key.
-- Called by jobs/scripts/sweep.py, remove_foreign.
-- KEYS: the sorted set
-- ARGV: the lowest score, the highest, how many members to skip, the most to check, the most bytes of a name, the score
--       that the others get ('' to leave theirs); then for each key that a member may have: what precedes its name,
--       what follows it
-- Returns {how many were checked, how many were removed, the beginning of the first or '', how many got the score}.
local page = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', ARGV[3], ARGV[4])
local foreign, moved = {}, 0
for _, name in ipairs(page) do
  local stands = #name <= tonumber(ARGV[5]) and is_text(name)
  if stands then
    local its_keys = {}
    for i = 7, #ARGV, 2 do its_keys[#its_keys + 1] = ARGV[i] .. name .. ARGV[i + 1] end
    stands = redis.call('EXISTS', unpack(its_keys)) > 0
  end
  if not stands then
    foreign[#foreign + 1] = name
  elseif ARGV[6] ~= '' then
    redis.call('ZADD', KEYS[1], ARGV[6], name)
    moved = moved + 1
  end
end
in_slices(#foreign, function(first, last) redis.call('ZREM', KEYS[1], unpack(foreign, first, last)) end)
return {#page, #foreign, string.sub(foreign[1] or '', 1, SHOWN_CHARS), moved}
