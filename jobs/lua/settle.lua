-- Ends or postpones claimed fetches of many lanes. It is safe to send again: a fetch that is no longer claimed is skipped. A
-- fetch that has ended in the record of its batch becomes a dead letter. So each fetch gets exactly one result.
-- It can also release a lane, if its gate is open and the lane is empty after the changes.
-- Called by jobs/scripts/settlement.py, settle_call.
-- KEYS: dead, results of all batches, backlog, attention, then for each batch: batch, results;
--       then for each lane: lane, claimed, later; to release it, also its cancelled batches, returned, high, normal, low
-- ARGV: finished TTL ms, unfinished TTL ms, dead length, '1' to add results to the stream of all batches too, gate TTL ms,
--       number of batches, then for each lane: name, token, state of the gate ('' if unchanged), '1' to release it if empty,
--       number of arguments that follow, and for each fetch its ID and one of
--       'done', number of its batch (from 1), outcome, bytes, result: store the result
--       'again', ms from now, serialized entry: queue the entry for another attempt
--       'back', ms from now: queue the entry as it is claimed
--       'begun', serialized entry: keep the fetch claimed, as this entry
--       'dead', reason, note: copy the entry to the dead letters; 'done' or 'drop' follows
--       'drop': forget the claim
-- Returns for each lane {now, ID of each fetch that had ended before …, 'left' if the lane is idle now}; {} if the token is
-- stale; an error if a key has a conflicting value, and then the lane is unchanged.
-- Apart from the results, the number of commands does not depend on the number of fetches. Every key is checked
-- before the first write.
local COMMON_KEYS, LANE_KEYS, RELEASE_KEYS, COMMON_ARGS, LANE_ARGS = 4, 3, 5, 6, 5
local ARG_COUNTS = {done = 6, again = 4, back = 3, begun = 3, dead = 4, drop = 2}
local HAD_ENDED = 'the fetch had ended: the record of its batch does not have it'
local dead_key, all_results_key, backlog_key, attention_key = unpack(KEYS, 1, COMMON_KEYS)
local finished_ttl, unfinished_ttl, dead_length, gate_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local to_all_results, batch_count = ARGV[4] == '1', tonumber(ARGV[6])
local now = now_ms()

local checked_keys = {}
local function must_be_once(kind, key)
  if not checked_keys[key] then must_be(kind, key) end
  checked_keys[key] = true
end

local batches = {} -- batch number → its key, counts, and the strings of its record to write
local function batch_with(number_of_batch)
  local batch = batches[number_of_batch]
  if batch then return batch end
  local first = COMMON_KEYS - 1 + 2 * number_of_batch
  must_be('stream', KEYS[first + 1])
  local before = redis.call('HMGET', KEYS[first], 'sealed', 'total', 'done', 'recorded', 'chunks', 'recorded_done')
  batch = {key = KEYS[first], results_key = KEYS[first + 1], before = before, records = {}, done = 0, counts = {bytes = 0}}
  batch.recorded = has_record(before[4], before[5])
  batches[number_of_batch] = batch
  return batch
end

local function record_with(batch, key)
  local record, before = batch.records[key], batch.before
  if record then return record end
  record = {exists = must_be('string', key), sets = {}, results = {}}
  local has_ended = before[1] == '1' and number(before[3]) >= number(before[2])
  -- A record that is gone although its batch goes on is lost, and so is a batch without a total.
  record.counts = record.exists and (batch.recorded or not before[2]) or batch.recorded and has_ended
  batch.records[key] = record
  return record
end

local function drop_claim(lane, id)
  lane.claimed[id] = nil
  lane.gone[#lane.gone + 1] = id
end

local function postpone(lane, id, ms, entry)
  drop_claim(lane, id)
  lane.postponed[#lane.postponed + 1] = int(now + ms)
  lane.postponed[#lane.postponed + 1] = entry
end

local actions = {}

function actions.done(lane, id, number_of_batch, outcome, bytes, text)
  local _, record_key, place = recorded_at(id)
  local batch = batch_with(number_of_batch)
  lane.results[#lane.results + 1] = {
    id = id, lane = lane, batch = batch, record = record_with(batch, record_key), place = place,
    outcome = outcome, bytes = bytes, text = text, entry = lane.claimed[id],
  }
  drop_claim(lane, id)
end

-- If the claimed entry equals the postponed one, this settlement was applied before and the fetch was claimed
-- again since. The new claim stays.
function actions.again(lane, id, ms, entry)
  if lane.claimed[id] ~= entry then postpone(lane, id, ms, entry) end
end

function actions.back(lane, id, ms)
  postpone(lane, id, ms, lane.claimed[id])
end

function actions.begun(lane, id, entry)
  lane.claimed[id] = entry
  lane.begun[id] = true
end

function actions.dead(lane, id, reason, note)
  lane.letters[#lane.letters + 1] = {reason, note, id, lane.claimed[id]}
end

actions.drop = drop_claim

-- Checks the keys of a lane, and reads the data that its changes need. Returns its reply so far. Sets lane.is_held if the
-- changes are to be written.
local function plan(lane)
  local found = redis.call('HMGET', lane.key, 'state', 'token', 'open', 'reset', 'left', 'estimated')
  -- This settlement was sent again: the first call released the lane, which may have an owner since.
  if found[5] == lane.token then return {now, 'left'} end
  if found[1] ~= 'held' or found[2] ~= lane.token then return {} end
  lane.open, lane.is_reset, lane.is_estimated = number(found[3]), found[4], found[6]

  local ids, at = {}, lane.first
  while at <= lane.last do
    ids[#ids + 1] = ARGV[at]
    at = at + ARG_COUNTS[ARGV[at + 1]]
  end
  lane.claimed = {} -- id → serialized entry, after the changes so far
  for i, entry in ipairs(#ids > 0 and values_of(lane.claimed_key, ids) or {}) do lane.claimed[ids[i]] = entry or nil end
  lane.letters, lane.postponed, lane.gone, lane.begun, lane.results = {}, {}, {}, {}, {}
  lane.had_ended = {} -- ids of the fetches that another call, or an earlier lane of this one, has ended
  at = lane.first
  while at <= lane.last do
    local id, action = ARGV[at], ARGV[at + 1]
    if lane.claimed[id] then actions[action](lane, id, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]) end
    at = at + ARG_COUNTS[action]
  end
  if #lane.letters > 0 then must_be_once('stream', dead_key) end
  if #lane.postponed > 0 then must_be('zset', lane.later_key) end
  if #lane.results > 0 and to_all_results then must_be_once('stream', all_results_key) end
  if lane.releases then must_be_once('zset', attention_key) end
  lane.is_held = true
  return {now}
end

local replies, lanes, results = {}, {}, {}
local at, key_at = COMMON_ARGS + 1, COMMON_KEYS + 2 * batch_count + 1
while at <= #ARGV do
  local lane = {name = ARGV[at], token = ARGV[at + 1], gate = ARGV[at + 2], releases = ARGV[at + 3] == '1', done = 0}
  lane.key, lane.claimed_key, lane.later_key = KEYS[key_at], KEYS[key_at + 1], KEYS[key_at + 2]
  lane.keys_at, lane.first, lane.last = key_at, at + LANE_ARGS, at + LANE_ARGS - 1 + ARGV[at + 4]
  lane.reply = alone(plan, lane)
  replies[#replies + 1] = lane.reply
  if lane.is_held then
    lanes[#lanes + 1] = lane
    for _, result in ipairs(lane.results) do
      local record = result.record
      local sets, count = record.sets, #record.sets
      results[#results + 1] = result
      record.results[#record.results + 1] = result
      sets[count + 1], sets[count + 2], sets[count + 3], sets[count + 4] = 'SET', 'u48', result.place, 0
    end
  end
  at, key_at = lane.last + 1, key_at + LANE_KEYS + (lane.releases and RELEASE_KEYS or 0)
end

-- If Redis is out of memory it refuses the script at its first write, if that adds memory, so nothing is written.
-- A script whose first write frees memory may complete. So the first write is that of a gate, if one has changed.
local with_gate
for _, lane in ipairs(lanes) do with_gate = with_gate or (lane.gate ~= '' and lane) end
if with_gate then redis.call('HSET', with_gate.key, 'gate', with_gate.gate) end
for _, lane in ipairs(lanes) do
  in_slices(#lane.gone, function(first, last) redis.call('HDEL', lane.claimed_key, unpack(lane.gone, first, last)) end)
end
local done = 0
for _, batch in pairs(batches) do
  for key, record in pairs(batch.records) do
    in_slices(#record.results, function(first, last)
      local old = record.exists and redis.call('BITFIELD', key, unpack(record.sets, 4 * first - 3, 4 * last)) or {}
      for i = first, last do
        local result = record.results[i]
        local lane, counts = result.lane, batch.counts
        if record.counts and (old[i - first + 1] or 0) == 0 then
          lane.had_ended[result.id] = true
          lane.reply[#lane.reply + 1] = result.id
        else
          lane.done, batch.done = lane.done + 1, batch.done + 1
          counts.bytes, counts[result.outcome] = counts.bytes + result.bytes, (counts[result.outcome] or 0) + 1
        end
      end
    end)
  end
  done = done + batch.done
end

local function bury(lane, reason, note, id, entry)
  return redis.pcall('XADD', dead_key, 'MAXLEN', '~', dead_length, '*', 'door', 'lane', 'reason', reason, 'note', note,
    'lane', lane.name, 'id', id, 'element', entry)
end

for _, lane in ipairs(lanes) do
  for _, letter in ipairs(lane.letters) do
    if not lane.had_ended[letter[3]] then bury(lane, unpack(letter)) end
  end
end
for _, result in ipairs(results) do
  if result.lane.had_ended[result.id] then
    bury(result.lane, 'invalid', HAD_ENDED, result.id, result.entry)
  else
    redis.call('XADD', result.batch.results_key, '*', 'r', result.text)
    if to_all_results then redis.call('XADD', all_results_key, '*', 'r', result.text) end
  end
end

local function count_in_batch(batch)
  local before, counted = batch.before, {}
  for field, by in pairs(batch.counts) do
    if by > 0 then counted[#counted + 1] = field end
  end
  local now_done = number(before[3]) + batch.done
  local changed = {'done', int(now_done)}
  if batch.recorded then changed[3], changed[4] = 'recorded_done', int(number(before[6]) + batch.done) end
  for i, value in ipairs(redis.call('HMGET', batch.key, unpack(counted))) do
    changed[#changed + 1] = counted[i]
    changed[#changed + 1] = int(number(value) + batch.counts[counted[i]])
  end
  redis.call('HSET', batch.key, unpack(changed))
  local ended = before[1] == '1' and now_done >= number(before[2])
  if ended then drop_record(batch.key, number(before[2])) end
  redis.call('PEXPIRE', batch.key, ended and finished_ttl or unfinished_ttl)
  redis.call('PEXPIRE', batch.results_key, ended and finished_ttl or unfinished_ttl)
end

for _, batch in pairs(batches) do
  if batch.done > 0 then count_in_batch(batch) end
end

local released = {} -- names of lanes that are idle now
for _, lane in ipairs(lanes) do
  local still, open, fields = {}, lane.open - lane.done, {}
  for id in pairs(lane.begun) do
    if lane.claimed[id] then
      still[#still + 1] = id
      still[#still + 1] = lane.claimed[id]
    end
  end
  in_slices(#still, function(first, last) redis.call('HSET', lane.claimed_key, unpack(still, first, last)) end)
  in_slices(#lane.postponed, function(first, last)
    redis.call('ZADD', lane.later_key, unpack(lane.postponed, first, last))
  end)
  -- The owner must apply an operator's reset first.
  local may_release = lane.releases and not lane.is_reset and #still == 0
  local rest = may_release and {unpack(KEYS, lane.keys_at + LANE_KEYS, lane.keys_at + LANE_KEYS + RELEASE_KEYS - 1)}
  local is_released = rest and redis.call('EXISTS', lane.claimed_key, lane.later_key, unpack(rest)) == 0
  if is_released then
    -- Another program may have removed entries: the lane is empty, so none of its counted fetches is open.
    if not lane.is_estimated then done = done + open end
    open, released[#released + 1], lane.reply[#lane.reply + 1] = 0, lane.name, 'left'
    fields = {'state', 'idle', 'left', lane.token, 'shut_until_ms', 0, 'why', ''}
  end
  if lane.gate ~= '' then fields[#fields + 1], fields[#fields + 2] = 'gate', lane.gate end
  if open ~= lane.open then fields[#fields + 1], fields[#fields + 2] = 'open', int(open) end
  if #fields > 0 then redis.call('HSET', lane.key, unpack(fields)) end
  if is_released then
    redis.call('HDEL', lane.key, 'owner', 'token', 'earliest_ms', 'estimated')
    redis.call('PEXPIRE', lane.key, gate_ttl)
  end
end
in_slices(#released, function(first, last) redis.call('ZREM', attention_key, unpack(released, first, last)) end)
if done ~= 0 then count_in_fleet(backlog_key, -done) end
return replies
