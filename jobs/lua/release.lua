-- held → scheduled if fetches wait, else idle. Claims return to the front of the queue.
-- Called by jobs/scripts/lanes.py, release_call.
-- KEYS: lane, claimed, later, returned, high, normal, low, attention, serial, backlog, its cancelled batches,
--       handed
-- ARGV: token, lane name, shut until (Unix ms, 0 if open), why, state of the gate, gate TTL ms, grace ms,
--       needs for which the lane is handed over to other workers ('' if it is not), ms of the handover,
--       most lanes handed over at once, TTL ms of the hash of handed lanes,
--       then claimed entries whose counters have changed
-- Returns {1} if idle, {1, generation, ms until due} if scheduled; {} if the token is stale.
-- A shut lane is due by the earliest deadline of its fetches, so that each one ends in time.
local SCAN_EVERY_MS = 1000
if not fenced(KEYS[1], ARGV[1]) then return {} end
local name, shut_until, why, grace = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[7])
local now = now_ms()
-- The next owner resets the gate.
if redis.call('HEXISTS', KEYS[1], 'reset') == 1 then shut_until, why = 0, '' end

for i = 12, #ARGV do
  local id = id_of(ARGV[i])
  if redis.call('HEXISTS', KEYS[2], id) == 1 then redis.call('HSET', KEYS[2], id, ARGV[i]) end
end
local returned = redis.call('HVALS', KEYS[2])
table.sort(returned, function(a, b) return a > b end)
for _, entry in ipairs(returned) do redis.call('LPUSH', KEYS[4], entry) end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'gate', ARGV[5], 'shut_until_ms', int(shut_until), 'why', why)

local RETRIES_AT_ONCE = 1000
local next_retry = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
if next_retry and tonumber(next_retry) > now + LONGEST_WAIT_MS then
  -- No worker writes such a time.
  local never = redis.call('ZRANGE', KEYS[3], 0, RETRIES_AT_ONCE - 1)
  for _, entry in ipairs(never) do redis.call('ZADD', KEYS[3], int(now), entry) end
  next_retry = int(now)
end
local waits = false
for i = 4, 7 do waits = waits or redis.call('EXISTS', KEYS[i]) == 1 end

if not waits and not next_retry then
  redis.call('DEL', KEYS[11])
  -- Another program may have removed entries: the lane is empty, so none of its counted fetches is open.
  local left = redis.call('HMGET', KEYS[1], 'open', 'estimated')
  if not left[2] and number(left[1]) ~= 0 then count_in_fleet(KEYS[10], -number(left[1])) end
  redis.call('HSET', KEYS[1], 'state', 'idle', 'open', 0)
  redis.call('HDEL', KEYS[1], 'owner', 'token', 'earliest_ms', 'estimated')
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  redis.call('ZREM', KEYS[8], name)
  -- A pause may end while the lane is idle. The next fetch makes the lane due, and the worker looks again.
  if why == 'paused' then redis.call('HSET', KEYS[1], 'shut_until_ms', 0, 'why', '') end
  return {1}
end

local due = waits and now or tonumber(next_retry)
if shut_until > now then
  local earliest = deadline(redis.call('HGET', KEYS[1], 'earliest_ms'))
  due = math.max(math.min(math.max(due, shut_until), earliest), now + SCAN_EVERY_MS)
end
due = math.max(due, now)
if ARGV[8] ~= '' and shut_until <= now then
  due = now + ARGV[9]
  if redis.call('HLEN', KEYS[12]) < tonumber(ARGV[10]) then
    redis.call('HSET', KEYS[1], 'needs', ARGV[8])
    redis.call('HSET', KEYS[12], name, ARGV[8])
    redis.call('PEXPIRE', KEYS[12], ARGV[11])
  end
end
if redis.call('EXISTS', KEYS[11]) == 1 then due = now end
local generation = schedule(KEYS[1], KEYS[8], KEYS[9], name, due, grace)
return {1, generation, due - now}
