-- Lists batches of which fetches are open although every deadline is long past, among a stretch of all batches.
-- Called by jobs/scripts/batches.py, late_batches.
-- KEYS: batches
-- ARGV: how many to skip, the most to look at, Unix ms before which the last deadline is
-- Returns {how many were looked at, batch id …}.
local names = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)
local reply = {#names}
for _, name in ipairs(names) do
  if is_batch_id(name) then
    -- A value of another type is moved away when a worker uses it.
    local batch = redis.pcall('HMGET', BATCH_PREFIX .. name, 'last_deadline_ms', 'done', 'total')
    local last_deadline = number(batch[1])
    if last_deadline > 0 and last_deadline < tonumber(ARGV[3]) and number(batch[2]) < number(batch[3]) then
      reply[#reply + 1] = name
    end
  end
end
return reply
