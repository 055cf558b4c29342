-- Lists batches with open fetches although every deadline has long passed, among some of all batches.
-- Called by jobs/scripts/batches.py, late_batches.
-- KEYS: batches
-- ARGV: number of batches to skip, most to check, Unix ms before which the last deadline must be
-- Returns {number checked, batch ID …}.
local names = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[1] + ARGV[2] - 1)
local reply = {#names}
for _, name in ipairs(names) do
  if is_batch_id(name) then
    -- A value of another type is quarantined when a worker uses it.
    local batch = redis.pcall('HMGET', BATCH_PREFIX .. name, 'last_deadline_ms', 'done', 'total')
    local last_deadline = number(batch[1])
    if last_deadline > 0 and last_deadline < tonumber(ARGV[3]) and number(batch[2]) < number(batch[3]) then
      reply[#reply + 1] = name
    end
  end
end
return reply
