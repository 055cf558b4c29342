-- Ends or postpones claimed fetches. It is safe to send again: a fetch that is no longer claimed is skipped, so
-- each fetch gets exactly one result.
-- Called by jobs/scripts/settlement.py, settle_call.
-- KEYS: lane, claimed, later, dead, results of all batches, backlog, then for each batch: batch, results
-- ARGV: token, the gate's state ('' if unchanged), finished TTL ms, unfinished TTL ms, dead length,
--       lane name, '1' to add results to the stream of all batches too, then for each fetch its id and one of
--       'done', number of its batch (from 1), outcome, bytes, result: store the result
--       'again', ms from now, serialized entry: queue the entry for another attempt
--       'back', ms from now: queue the entry as it is claimed
--       'begun', serialized entry: keep the fetch claimed, as this entry
--       'dead', reason, note: copy the entry to the dead letters; 'done' or 'drop' follows
--       'drop': forget the claim
-- Returns {now}; {} if the token is stale.
-- Apart from the results, the number of commands does not depend on the number of fetches. Every decision is made
-- and every key is checked before the first write.
local lane = redis.call('HMGET', KEYS[1], 'state', 'token', 'open')
if lane[1] ~= 'held' or lane[2] ~= ARGV[1] then return {} end
local now = now_ms()

local ARG_COUNTS = {done = 6, again = 4, back = 3, begun = 3, dead = 4, drop = 2}
local ids = {}
local at = 8
while at <= #ARGV do
  ids[#ids + 1] = ARGV[at]
  at = at + ARG_COUNTS[ARGV[at + 1]]
end
local claimed = {} -- id → serialized entry, after the changes so far
for i, entry in ipairs(values_of(KEYS[2], ids)) do claimed[ids[i]] = entry or nil end

local counts = {} -- batch number → outcome → count, and bytes
local results, letters, postponed, gone, begun = {}, {}, {}, {}, {}
local done = 0

local function drop_claim(id)
  claimed[id] = nil
  gone[#gone + 1] = id
end

local function postpone(id, ms, entry)
  drop_claim(id)
  postponed[#postponed + 1] = int(now + ms)
  postponed[#postponed + 1] = entry
end

local actions = {}

function actions.done(id, batch, outcome, bytes, result)
  drop_claim(id)
  batch = tonumber(batch)
  results[#results + 1] = {batch, result}
  local count = counts[batch] or {done = 0, bytes = 0}
  count.done = count.done + 1
  count.bytes = count.bytes + tonumber(bytes)
  count[outcome] = (count[outcome] or 0) + 1
  counts[batch] = count
  done = done + 1
end

-- If the claimed entry equals the postponed one, this settlement was applied before and the fetch was claimed
-- again since. The new claim stays.
function actions.again(id, ms, entry)
  if claimed[id] ~= entry then postpone(id, ms, entry) end
end

function actions.back(id, ms)
  postpone(id, ms, claimed[id])
end

function actions.begun(id, entry)
  claimed[id] = entry
  begun[id] = true
end

function actions.dead(id, reason, note)
  letters[#letters + 1] = {reason, note, id, claimed[id]}
end

actions.drop = drop_claim

at = 8
while at <= #ARGV do
  local id, action = ARGV[at], ARGV[at + 1]
  if claimed[id] then actions[action](id, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]) end
  at = at + ARG_COUNTS[action]
end

if #letters > 0 then must_be('stream', KEYS[4]) end
if #postponed > 0 then must_be('zset', KEYS[3]) end
if done > 0 and ARGV[7] == '1' then must_be('stream', KEYS[5]) end
local ended, changed = {}, {} -- batch number → whether it has ended; its new counts
for batch, count in pairs(counts) do
  must_be('stream', KEYS[6 + 2 * batch])
  local fields = {'sealed', 'total', 'done'}
  for field, by in pairs(count) do
    if by > 0 and field ~= 'done' then fields[#fields + 1] = field end
  end
  local before = redis.call('HMGET', KEYS[5 + 2 * batch], unpack(fields))
  local now_done = number(before[3]) + count.done
  ended[batch] = before[1] == '1' and now_done >= number(before[2])
  changed[batch] = {'done', int(now_done)}
  for i = 4, #fields do
    table.insert(changed[batch], fields[i])
    table.insert(changed[batch], int(number(before[i]) + count[fields[i]]))
  end
end

-- If Redis is out of memory it refuses the script at its first write, if that adds memory, so nothing is written.
-- A script whose first write frees memory may complete.
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'gate', ARGV[2]) end
for _, letter in ipairs(letters) do
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'door', 'lane', 'reason', letter[1], 'note', letter[2],
    'lane', ARGV[6], 'id', letter[3], 'element', letter[4])
end
in_slices(#gone, function(first, last) redis.call('HDEL', KEYS[2], unpack(gone, first, last)) end)
local still = {}
for id in pairs(begun) do
  if claimed[id] then
    still[#still + 1] = id
    still[#still + 1] = claimed[id]
  end
end
in_slices(#still, function(first, last) redis.call('HSET', KEYS[2], unpack(still, first, last)) end)
in_slices(#postponed, function(first, last) redis.call('ZADD', KEYS[3], unpack(postponed, first, last)) end)
for _, result in ipairs(results) do
  redis.call('XADD', KEYS[6 + 2 * result[1]], '*', 'r', result[2])
  if ARGV[7] == '1' then redis.call('XADD', KEYS[5], '*', 'r', result[2]) end
end
for batch, fields in pairs(changed) do
  redis.call('HSET', KEYS[5 + 2 * batch], unpack(fields))
  local ttl = ended[batch] and ARGV[3] or ARGV[4]
  redis.call('PEXPIRE', KEYS[5 + 2 * batch], ttl)
  redis.call('PEXPIRE', KEYS[6 + 2 * batch], ttl)
end
if done > 0 then
  redis.call('HSET', KEYS[1], 'open', int(number(lane[3]) - done))
  count_in_fleet(KEYS[6], -done)
end
return {now}
