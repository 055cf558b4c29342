-- Removes cancelled batches from a lane if none of their fetches is claimed. Returns their claimed entries, because the
-- owner does not know a claim whose reply was lost.
-- Called by jobs/scripts/lanes.py, withdrawn.
-- KEYS: lane, claimed, its cancelled batches
-- ARGV: token, batch IDs
-- Returns {serialized entries, their values in records (records_of), number of elements that were too large and became
-- dead letters}; {} if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local cancelled = {}
for i = 2, #ARGV do cancelled[ARGV[i]] = true end
local left = {}
local entries, too_large = claimed_entries(KEYS[2], KEYS[1])
for _, entry in ipairs(entries) do
  if cancelled[batch_of(entry)] then left[#left + 1] = entry end
end
if #left == 0 then redis.call('SREM', KEYS[3], unpack(ARGV, 2)) end
return {left, records_of(left), too_large}
