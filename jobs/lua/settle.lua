-- Ends or postpones claimed fetches. It is safe to send again: a fetch that is no longer claimed is skipped. A fetch
-- that the record of its batch no longer has becomes a dead letter. So each fetch gets exactly one result.
-- Called by jobs/scripts/settlement.py, settle_call.
-- It can give the lane back in the same call, if it is open, and empty once the changes are made.
-- KEYS: lane, claimed, later, dead, results of all batches, backlog, then for each batch: batch, results;
--       to give the lane back, then attention, its cancelled batches, returned, high, normal, low
-- ARGV: token, the gate's state ('' if unchanged), finished TTL ms, unfinished TTL ms, dead length,
--       lane name, '1' to add results to the stream of all batches too, gate TTL ms to give the lane back ('' to keep it),
--       then for each fetch its id and one of
--       'done', number of its batch (from 1), outcome, bytes, result: store the result
--       'again', ms from now, serialized entry: queue the entry for another attempt
--       'back', ms from now: queue the entry as it is claimed
--       'begun', serialized entry: keep the fetch claimed, as this entry
--       'dead', reason, note: copy the entry to the dead letters; 'done' or 'drop' follows
--       'drop': forget the claim
-- Returns {now, id of each fetch that had ended before …, 'left' if the lane is idle now}; {} if the token is stale.
-- Apart from the results, the number of commands does not depend on the number of fetches. Every key is checked
-- before the first write.
local lane = redis.call('HMGET', KEYS[1], 'state', 'token', 'open', 'reset', 'left')
local now = now_ms()
-- Sent again: the lane was given back, after all of it was settled.
if lane[1] == 'idle' and lane[5] == ARGV[1] then return {now, 'left'} end
if lane[1] ~= 'held' or lane[2] ~= ARGV[1] then return {} end

local ARG_COUNTS = {done = 6, again = 4, back = 3, begun = 3, dead = 4, drop = 2}
local ids = {}
local at = 9
while at <= #ARGV do
  ids[#ids + 1] = ARGV[at]
  at = at + ARG_COUNTS[ARGV[at + 1]]
end
local claimed = {} -- id → serialized entry, after the changes so far
for i, entry in ipairs(values_of(KEYS[2], ids)) do claimed[ids[i]] = entry or nil end

local letters, postponed, gone, begun = {}, {}, {}, {}
local batches = {} -- batch number → its key, counts, and the strings of its record to write
local results = {} -- each with its id, batch, outcome, bytes, text and claimed entry
local no_longer = {} -- id → whether the fetch had ended

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
local HAD_ENDED = 'the fetch had ended: the record of its batch does not have it'

function actions.done(id, number_of_batch, outcome, bytes, text)
  local batch = batches[number_of_batch]
  if not batch then
    local first = 5 + 2 * number_of_batch
    batch = {key = KEYS[first], results_key = KEYS[first + 1], records = {}, done = 0, bytes = 0, counts = {}}
    batches[number_of_batch] = batch
  end
  local _, key, place = recorded_at(id)
  local record = batch.records[key]
  if not record then
    record = {sets = {}, results = {}}
    batch.records[key] = record
  end
  local result = {id = id, batch = batch, outcome = outcome, bytes = bytes, text = text, entry = claimed[id]}
  drop_claim(id)
  batch.counts[outcome] = 0
  results[#results + 1] = result
  record.results[#record.results + 1] = result
  local sets = record.sets
  local count = #sets
  sets[count + 1], sets[count + 2], sets[count + 3], sets[count + 4] = 'SET', 'u48', place, 0
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

at = 9
while at <= #ARGV do
  local id, action = ARGV[at], ARGV[at + 1]
  if claimed[id] then actions[action](id, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]) end
  at = at + ARG_COUNTS[action]
end

if #letters > 0 then must_be('stream', KEYS[4]) end
if #postponed > 0 then must_be('zset', KEYS[3]) end
if #results > 0 and ARGV[7] == '1' then must_be('stream', KEYS[5]) end
for _, batch in pairs(batches) do
  must_be('stream', batch.results_key)
  local fields = {'sealed', 'total', 'done', 'recorded', 'chunks', 'recorded_done', 'bytes'}
  for outcome in pairs(batch.counts) do fields[#fields + 1] = outcome end
  local before = redis.call('HMGET', batch.key, unpack(fields))
  batch.fields, batch.before = fields, before
  batch.recorded = has_record(before[4], before[5])
  local has_ended = before[1] == '1' and number(before[3]) >= number(before[2])
  for key, record in pairs(batch.records) do
    record.exists = must_be('string', key)
    -- A record that is gone although its batch goes on is lost, and so is a batch without a total.
    record.counts = record.exists and (batch.recorded or not before[2]) or batch.recorded and has_ended
  end
end

-- If Redis is out of memory it refuses the script at its first write, if that adds memory, so nothing is written.
-- A script whose first write frees memory may complete.
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'gate', ARGV[2]) end
in_slices(#gone, function(first, last) redis.call('HDEL', KEYS[2], unpack(gone, first, last)) end)
local reply, done = {now}, 0
for _, batch in pairs(batches) do
  for key, record in pairs(batch.records) do
    in_slices(#record.results, function(first, last)
      local old = record.exists and redis.call('BITFIELD', key, unpack(record.sets, 4 * first - 3, 4 * last)) or {}
      for i = first, last do
        local result = record.results[i]
        if record.counts and (old[i - first + 1] or 0) == 0 then
          no_longer[result.id] = true
          reply[#reply + 1] = result.id
        else
          batch.done = batch.done + 1
          batch.bytes = batch.bytes + result.bytes
          batch.counts[result.outcome] = batch.counts[result.outcome] + 1
        end
      end
    end)
  end
  done = done + batch.done
end
for _, letter in ipairs(letters) do
  if not no_longer[letter[3]] then
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'door', 'lane', 'reason', letter[1], 'note', letter[2],
      'lane', ARGV[6], 'id', letter[3], 'element', letter[4])
  end
end
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
  if no_longer[result.id] then
    redis.pcall('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'door', 'lane', 'reason', 'invalid', 'note', HAD_ENDED,
      'lane', ARGV[6], 'id', result.id, 'element', result.entry)
  else
    redis.call('XADD', result.batch.results_key, '*', 'r', result.text)
    if ARGV[7] == '1' then redis.call('XADD', KEYS[5], '*', 'r', result.text) end
  end
end
for _, batch in pairs(batches) do
  local before = batch.before
  if batch.done > 0 then
    local now_done = number(before[3]) + batch.done
    local changed = {'done', int(now_done)}
    if batch.recorded then
      changed[3], changed[4] = 'recorded_done', int(number(before[6]) + batch.done)
    end
    batch.counts.bytes = batch.bytes
    for i = 7, #batch.fields do
      local by = batch.counts[batch.fields[i]]
      if by > 0 then
        changed[#changed + 1] = batch.fields[i]
        changed[#changed + 1] = int(number(before[i]) + by)
      end
    end
    redis.call('HSET', batch.key, unpack(changed))
    local ended = before[1] == '1' and now_done >= number(before[2])
    if ended then drop_record(batch.key, number(before[2])) end
    redis.call('PEXPIRE', batch.key, ended and ARGV[3] or ARGV[4])
    redis.call('PEXPIRE', batch.results_key, ended and ARGV[3] or ARGV[4])
  end
end
if done > 0 then
  redis.call('HSET', KEYS[1], 'open', int(number(lane[3]) - done))
  count_in_fleet(KEYS[6], -done)
end
if ARGV[8] ~= '' and not lane[4] then -- an operator's reset is for the owner
  local first = #KEYS - 5
  if redis.call('EXISTS', KEYS[2], KEYS[3], unpack(KEYS, first + 1)) == 0 then
    redis.call('HSET', KEYS[1], 'shut_until_ms', 0, 'why', '', 'left', ARGV[1])
    make_idle(KEYS[1], KEYS[first], KEYS[6], ARGV[6], ARGV[8])
    reply[#reply + 1] = 'left'
  end
end
return reply
