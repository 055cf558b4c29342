-- Adds to a batch the IDs of the batches in which its failed fetches were submitted again. It is safe to send again.
-- Called by jobs/scripts/batches.py, link_retry.
-- KEYS: batch
-- ARGV: IDs of the new batches
-- Returns 1, or 0 if the batch does not exist.
must_be('hash', KEYS[1])
local batch = redis.call('HMGET', KEYS[1], 'total', 'retried_as')
if not batch[1] then return 0 end
local known = batch[2] or ''
for _, id in ipairs(ARGV) do
  if not string.find(' ' .. known .. ' ', ' ' .. id .. ' ', 1, true) then
    known = known == '' and id or known .. ' ' .. id
  end
end
redis.call('HSET', KEYS[1], 'retried_as', known)
return 1
