-- No fetch of these cancelled batches is left in the lane; or else those that are claimed, of which a lost
-- reply may have kept the owner ignorant.
-- Called by jobs/scripts/lanes.py, withdrawn.
-- KEYS: lane, claimed, its cancelled batches
-- ARGV: token, batch ids
-- Returns {1, element …}; {} to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local cancelled = {}
for i = 2, #ARGV do cancelled[ARGV[i]] = true end
local left = {1}
for _, element in ipairs(redis.call('HVALS', KEYS[2])) do
  if cancelled[batch_of(element)] then left[#left + 1] = element end
end
if #left == 1 then redis.call('SREM', KEYS[3], unpack(ARGV, 2)) end
return left
