-- Lists some of the cancelled batches of a lane, and removes members that are not cancelled batches.
-- Called by jobs/scripts/batches.py, cancelled_batches.
-- KEYS: the lane's cancelled batches
-- ARGV: cursor (0 to begin), number of members to check, prefix of the key of a batch
-- Returns {the next cursor, 0 at the end, {batch id …}}.
must_be('set', KEYS[1])
local page = redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local cancelled, others = {}, {}
for _, id in ipairs(page[2]) do
  local field = is_batch_id(id) and redis.pcall('HEXISTS', ARGV[3] .. id, 'cancel_ms') or 0
  if field == 0 then others[#others + 1] = id end
  if field == 1 then cancelled[#cancelled + 1] = id end
end
in_slices(#others, function(first, last) redis.call('SREM', KEYS[1], unpack(others, first, last)) end)
return {tonumber(page[1]), cancelled}
