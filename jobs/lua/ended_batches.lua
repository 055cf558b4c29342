-- Lists batches that have ended, among some of those with a webhook, and removes those that do not exist. A batch stays
-- listed until its webhook is enqueued.
-- Called by jobs/scripts/batches.py, ended_batches.
-- KEYS: webhooks
-- ARGV: most batches to check, ms within which a batch is checked once, the names of the counters to return
-- Returns {number checked, {batch ID, URL, Unix ms when it was first found to have ended, counter …} …}.
must_be('zset', KEYS[1])
local now, reply, scores = now_ms(), {}, {}
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(now - ARGV[2]), 'LIMIT', 0, ARGV[1])
reply[1] = #found
for _, name in ipairs(found) do
  local key = BATCH_PREFIX .. name
  -- A value of another type is quarantined when a worker uses it.
  local url = is_batch_id(name) and redis.pcall('HGET', key, 'notify')
  if type(url) ~= 'string' then
    redis.call('ZREM', KEYS[1], name)
  else
    scores[#scores + 1], scores[#scores + 2] = int(now), name
    if has_ended(key) then
      redis.call('HSETNX', key, 'ended_ms', int(now))
      local values = redis.call('HMGET', key, 'ended_ms', unpack(ARGV, 3))
      reply[#reply + 1] = {name, url, number(values[1]), unpack(values, 2)}
    end
  end
end
in_slices(#scores / 2, function(first, last) redis.call('ZADD', KEYS[1], unpack(scores, 2 * first - 1, 2 * last)) end)
return reply
