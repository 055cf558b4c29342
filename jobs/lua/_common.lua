-- Shared functions. jobs/scripts/runner.py prepends those that a script uses.
-- The state of a lane's hash (jobs/keys.py, lane) is idle (or absent), scheduled or held.
-- An entry is a serialized entry: fetch ID, deadline in Unix ms, JSON (jobs/contract/entry.py).

local BATCH_ID_CHARS = 16
local FETCH_ID_CHARS = 25
local DEADLINE_CHARS = 13
local HEAD_CHARS = FETCH_ID_CHARS + DEADLINE_CHARS

-- Follows the fetch ID in a `key` once a submit of another batch has returned that ID.
local COUNTED_ON = '+'

-- The clock of Redis is the only one that scripts use: those of workers and producers may be wrong.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n)
  return string.format('%.0f', n)
end

local function id_of(entry)
  return string.sub(entry, 1, FETCH_ID_CHARS)
end

local function batch_of(entry)
  return string.sub(entry, 1, BATCH_ID_CHARS)
end

local function is_batch_id(text)
  return text and #text == BATCH_ID_CHARS and not string.find(text, '[^0-9a-f]')
end

-- Digits only: tonumber accepts "nan" and "inf".
local function deadline_of(entry)
  return tonumber(string.match(string.sub(entry, FETCH_ID_CHARS + 1, HEAD_CHARS), '^%d+$') or 0)
end

-- Calls each(first, last) for slices of a list of `length` elements: unpack fails above about 8,000 values.
local SLICE = 1500
local function in_slices(length, each)
  for first = 1, length, SLICE do each(first, math.min(length, first + SLICE - 1)) end
end

-- Returns the values of many fields of a hash, false for missing ones.
local function values_of(hash_key, fields)
  local values = {}
  in_slices(#fields, function(first, last)
    for _, value in ipairs(redis.call('HMGET', hash_key, unpack(fields, first, last))) do values[#values + 1] = value end
  end)
  return values
end

-- Returns the type of the value at a key if it conflicts with the kind, else nil and whether the key exists. The kind
-- counter is a string that INCRBY accepts.
local COUNTER_CHARS = 18
local function conflicting_type(kind, key)
  local found = redis.call('TYPE', key)['ok']
  if found == 'none' or found == kind then return nil, found == kind end
  if found ~= 'string' or kind ~= 'counter' then return found end
  local text = redis.call('GET', key)
  local whole = #text <= COUNTER_CHARS and (text == '0' or string.find(text, '^-?[1-9]%d*$'))
  return not whole and found or nil, true
end

-- Fails if the key has a value of another kind. Call it before the first write, because Redis does not roll back a
-- failed script. jobs/scripts/runner.py parses the message. Returns whether the key exists.
local function must_be(kind, key)
  local conflict, exists = conflicting_type(kind, key)
  if conflict then error('WRONGTYPE at "' .. key .. '": a ' .. conflict .. ', not a ' .. kind) end
  return exists
end

-- Returns the result of a function for one of many lanes, or its error, so that the other lanes are not affected.
local function alone(work, ...)
  local is_done, found = pcall(work, ...)
  if is_done then return found end
  return {err = type(found) == 'table' and found.err or found}
end

-- Returns whether the bytes are UTF-8. Each valid sequence becomes one character, so that parts of two cannot join.
local SEQUENCES = {
  '[\194-\223][\128-\191]', '\224[\160-\191][\128-\191]', '[\225-\236\238\239][\128-\191][\128-\191]',
  '\237[\128-\159][\128-\191]', '\240[\144-\191][\128-\191][\128-\191]',
  '[\241-\243][\128-\191][\128-\191][\128-\191]', '\244[\128-\143][\128-\191][\128-\191]',
}
local function is_text(bytes)
  if not string.find(bytes, '[\128-\255]') then return true end
  for _, sequence in ipairs(SEQUENCES) do bytes = string.gsub(bytes, sequence, '.') end
  return not string.find(bytes, '[\128-\255]')
end

-- Parses a number that another program may have overwritten; 0 if it is not a number, or not exact in a double.
local MOST = 2 ^ 53
local function number(text)
  local found = tonumber(text or 0) or 0
  return math.abs(found) < MOST and found or 0
end

-- Parses a deadline; infinity if it is missing or not a number.
local function deadline(text)
  local found = tonumber(text or 'inf') or math.huge
  return found == found and found or math.huge
end

-- More than the longest wait of a lane: a retry, a cool-down and the next start are sooner under any policy.
local LONGEST_WAIT_MS = 3 * 24 * 3600 * 1000

-- Returns whether the lane is held under this token. Only then may the caller change it.
local function fenced(lane_key, token)
  local lane = redis.call('HMGET', lane_key, 'state', 'token')
  return lane[1] == 'held' and lane[2] == token
end

-- No counter of fetchfleet is a year ahead of the clock in µs: the largest is the serial, which follows it.
local YEAR_US = 366 * 24 * 3600 * 1000000
local function clock_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function is_absurd(count)
  return not count or count ~= count or count < -YEAR_US or count > clock_us() + YEAR_US
end

-- Returns the next serial. It follows the clock in µs: after a restart that lost the last writes, Redis must not give
-- out a token a second time. A serial that another program set is not used; a worker moves it away (quarantine.lua).
local function next_serial(serial_key)
  local clock, last = clock_us(), tonumber(redis.call('GET', serial_key) or 0) or 0
  if is_absurd(last) then return clock end
  return redis.call('INCRBY', serial_key, int(math.max(1, clock - last)))
end

-- Returns the serial of this call, the same for all of its lanes: each compares it with its own earlier ones only.
local serial
local function serial_of_call(serial_key)
  serial = serial or next_serial(serial_key)
  return serial
end

-- Returns a number greater than any before it in a lane of that generation and token: the serial, if it is.
local function above(serial, generation, token)
  for _, text in ipairs({generation or '', token or ''}) do
    if number(text) < MOST / 2 then serial = math.max(serial, number(text) + 1) end
  end
  return serial
end

-- Makes the lane due at due_ms under a new generation; notifications of older generations become stale.
local function schedule(lane_key, attention_key, serial_key, name, due_ms, grace_ms)
  local generation = above(next_serial(serial_key), unpack(redis.call('HMGET', lane_key, 'generation', 'token')))
  redis.call('HSET', lane_key, 'state', 'scheduled', 'generation', int(generation), 'due_ms', int(due_ms))
  redis.call('HDEL', lane_key, 'owner', 'token')
  redis.call('PERSIST', lane_key)
  redis.call('ZADD', attention_key, int(due_ms + grace_ms), name)
  return generation
end

-- Counts fetches that were added to a lane, and reschedules the lane if it must be due earlier. deadline_ms: earliest
-- deadline of the added fetches. Returns the generation and due time (Unix ms) of the notification that the lane needs;
-- nil if it is held or due already. The caller adds the lane to the schedule. A lane in cool-down is due by the deadline,
-- so that each fetch ends in time.
local function note_added(lane_key, serial_key, added, deadline_ms, now)
  local lane = redis.call('HMGET', lane_key, 'state', 'due_ms', 'shut_until_ms', 'open', 'earliest_ms', 'generation', 'token')
  local fields, due, shut_until = {'open', int(number(lane[4]) + added)}, now, number(lane[3])
  if deadline_ms < deadline(lane[5]) then fields[3], fields[4] = 'earliest_ms', int(deadline_ms) end
  if shut_until > now and shut_until <= now + LONGEST_WAIT_MS then due = math.max(now, math.min(shut_until, deadline_ms)) end
  if lane[1] == 'held' or (lane[1] == 'scheduled' and number(lane[2]) <= due) then
    redis.call('HSET', lane_key, unpack(fields))
    return nil
  end
  local generation = above(serial_of_call(serial_key), lane[6], lane[7])
  redis.call('HSET', lane_key, 'state', 'scheduled', 'generation', int(generation), 'due_ms', int(due), unpack(fields))
  if lane[1] or lane[6] or lane[7] then
    redis.call('HDEL', lane_key, 'owner', 'token')
    redis.call('PERSIST', lane_key)
  end
  return generation, due
end

-- Makes a lane due now that is due later: returns {generation, 0}, or {} if it is due, held or idle.
local function schedule_now(lane_key, attention_key, serial_key, name, grace_ms)
  local lane = redis.call('HMGET', lane_key, 'state', 'due_ms')
  local now = now_ms()
  if lane[1] ~= 'scheduled' or number(lane[2]) <= now then return {} end
  return {schedule(lane_key, attention_key, serial_key, name, now, grace_ms), 0}
end

-- Stores the creation time of a new batch, and adds the batch to the set of batches.
local function list_if_new(batch_key, batches_key, batch_id, now)
  if redis.call('HSETNX', batch_key, 'created_ms', int(now)) == 1 then redis.call('ZADD', batches_key, int(now), batch_id) end
end

-- Stores the URL of a batch's webhook, and adds the batch to those that the sweep checks. The first URL stays.
local function set_webhook(batch_key, batch_id, url, now)
  if url == '' or redis.call('HSETNX', batch_key, 'notify', url) == 0 then return end
  redis.call('ZADD', WEBHOOKS_KEY, 'NX', int(now), batch_id)
end

-- Adds an invalid inbox message to the dead letters; returns whether it did. limit: most letters of the inbox in a minute,
-- 0 for no limit: messages of one producer must not displace the dead letters of failed fetches.
local LETTERS_WINDOW_MS = 60000
local function bury_message(dead_key, dead_length, intake_key, limit, note, message)
  if tonumber(limit) > 0 then
    local now, window = now_ms(), redis.call('HMGET', intake_key, 'letters_ms', 'letters')
    local since, letters = number(window[1]), number(window[2])
    if since > now or now - since >= LETTERS_WINDOW_MS then since, letters = now, 0 end
    if letters >= tonumber(limit) then return false end
    redis.call('HSET', intake_key, 'letters_ms', int(since), 'letters', int(letters + 1))
  end
  redis.call('XADD', dead_key, 'MAXLEN', '~', dead_length, '*', 'door', 'inbox', 'reason', 'invalid',
    'note', note, 'element', message)
  return true
end

-- Returns whether a batch is sealed and all of its fetches have results.
local function has_ended(batch_key)
  local batch = redis.call('HMGET', batch_key, 'sealed', 'total', 'done')
  return batch[1] == '1' and number(batch[3]) >= number(batch[2])
end

-- Adds an element that is too large for a worker to the dead letters: its size, SHA-1 and first characters.
local SHOWN_CHARS = 1000
local function bury_large(lane_key, entry)
  local note = 'has ' .. #entry .. ' bytes; the limit is ' .. MAX_ENTRY_BYTES .. '; SHA-1 ' .. redis.sha1hex(entry)
  redis.pcall('XADD', DEAD_KEY, 'MAXLEN', '~', DEAD_LENGTH, '*', 'door', 'lane', 'reason', 'invalid', 'note', note,
    'lane', string.sub(lane_key, #LANE_PREFIX + 1), 'id', id_of(entry), 'element', string.sub(entry, 1, SHOWN_CHARS))
end

-- Returns claimed entries of a lane, up to about 8 * CLAIM_BYTES, and the number of those too large for a worker.
-- An entry under another ID than its own comes from another program. It cannot be settled, so it is skipped, and returns
-- to the queue when the lane is released.
local function claimed_entries(claimed_key, lane_key)
  local found, bytes, too_large = {}, 0, 0
  for _, id in ipairs(redis.call('HKEYS', claimed_key)) do
    local size = redis.call('HSTRLEN', claimed_key, id)
    if size > MAX_ENTRY_BYTES then
      bury_large(lane_key, redis.call('HGET', claimed_key, id))
      redis.call('HDEL', claimed_key, id)
      too_large = too_large + 1
    elseif bytes + size <= 8 * CLAIM_BYTES then
      local entry = redis.call('HGET', claimed_key, id)
      if id_of(entry) == id then
        found[#found + 1] = entry
        bytes = bytes + size
      end
    end
  end
  return found, too_large
end

-- The record of a batch is described in jobs/keys.py, record. It consists of strings, one for each segment of places.
local function record_key(batch_key, segment)
  return batch_key .. RECORD_SUFFIX .. (segment == 0 and '' or ':' .. int(segment))
end

-- Returns the key of the batch, the key of the record's string and '#' with the place in it; nil if it is not a fetch ID.
local keys_of_records = {} -- batch ID → segment → the two keys
local function recorded_at(id)
  local batch_id, digits = string.match(id, '^([0-9a-f]+)%-([0-9a-f]+)$')
  if not batch_id or #batch_id ~= BATCH_ID_CHARS or #id ~= FETCH_ID_CHARS then return nil end
  local at = tonumber(digits, 16)
  local place = at % SEGMENT_PLACES
  local segment = (at - place) / SEGMENT_PLACES
  local segments = keys_of_records[batch_id]
  if not segments then
    segments = {}
    keys_of_records[batch_id] = segments
  end
  local keys = segments[segment]
  if not keys then
    local batch_key = BATCH_PREFIX .. batch_id
    keys = {batch_key, record_key(batch_key, segment)}
    segments[segment] = keys
  end
  return keys[1], keys[2], '#' .. place
end

-- Returns the number of the last string of a record. The total is bounded, because another program may have set it.
local MAX_BATCH_FETCHES = 2 ^ 32
local function last_segment(total)
  return math.floor(math.max(0, math.min(total, MAX_BATCH_FETCHES - 1)) / SEGMENT_PLACES)
end

-- Removes the record of a batch that has ended, unless fetches in it are open.
local function drop_record(batch_key, total)
  for segment = 0, last_segment(total) do
    local key = record_key(batch_key, segment)
    if redis.pcall('BITPOS', key, 1) == -1 then redis.call('UNLINK', key) end
  end
end

-- A value in a record is (fingerprint of the fetch + deadline in Unix ms) mod this, or 1 if that is 0.
local RECORD_MODULUS = 2 ^ 48

-- Returns whether every chunk of a batch is in its record, given the fields `recorded` and `chunks`.
local function has_record(recorded, chunks)
  return recorded and number(recorded) > 0 and number(recorded) == number(chunks)
end

-- The state of a fetch whose value in the record is 0: jobs/scripts/lanes.py has the same numbers.
local UNRECORDED, ENDED, UNKNOWN_BATCH = 0, -1, -2
local function unlisted(batch_key)
  local batch = redis.pcall('HMGET', batch_key, 'total', 'recorded', 'chunks', 'sealed', 'done')
  if batch.err then return UNRECORDED end -- a conflicting value: worker/redis_support/key_repair.py quarantines it
  local is_there = redis.call('EXISTS', record_key(batch_key, 0)) == 1
  if not batch[1] then return is_there and ENDED or UNKNOWN_BATCH end
  if number(batch[3]) == 0 then return ENDED end
  if not has_record(batch[2], batch[3]) then return UNRECORDED end
  local ended = batch[4] and number(batch[5]) >= number(batch[1])
  return (is_there or ended) and ENDED or UNRECORDED -- a batch with open fetches has lost its record
end

-- Returns for each entry its value in the record of its batch, or one of the states above. It reads each string of a
-- record once.
local function records_of(entries)
  local records, groups = {}, {}
  for i, entry in ipairs(entries) do
    local batch_key, key, at = recorded_at(id_of(entry))
    records[i] = UNKNOWN_BATCH
    if key then
      local group = groups[key] or {batch_key = batch_key, gets = {}, places = {}}
      groups[key] = group
      group.places[#group.places + 1] = i
      local gets = group.gets
      gets[#gets + 1], gets[#gets + 2], gets[#gets + 3] = 'GET', 'u48', at
    end
  end
  for key, group in pairs(groups) do
    local nothing = nil
    in_slices(#group.places, function(first, last)
      local found = redis.pcall('BITFIELD_RO', key, unpack(group.gets, 3 * first - 2, 3 * last))
      for i = first, last do
        local value = found.err and UNRECORDED or found[i - first + 1]
        if value == 0 and not found.err then
          nothing = nothing or unlisted(group.batch_key)
          value = nothing
        end
        records[group.places[i]] = value
      end
    end)
  end
  return records
end

-- Marks a batch as sealed; returns the TTL for its keys.
local function seal(batch_key, finished_ttl, unfinished_ttl)
  redis.call('HSET', batch_key, 'sealed', 1)
  if not has_ended(batch_key) then return unfinished_ttl end
  drop_record(batch_key, number(redis.call('HGET', batch_key, 'total')))
  return finished_ttl
end

-- Adds to the fleet's backlog. A conflicting value at its key does not fail the script: a worker quarantines it and
-- recomputes the backlog (worker/redis_support/key_repair.py).
local function count_in_fleet(backlog_key, by)
  redis.pcall('INCRBY', backlog_key, by)
end

-- Returns the number of fetches in a lane. KEYS from `first`: claimed, later, returned, high, normal, low.
local function count_fetches(first)
  local count = redis.call('HLEN', KEYS[first]) + redis.call('ZCARD', KEYS[first + 1])
  for i = first + 2, first + 5 do count = count + redis.call('LLEN', KEYS[i]) end
  return count
end

-- Moves fetches from the queues of a lane to its claimed hash: due retries first, then returned fetches, then by priority.
-- keys: lane, claimed, later, returned, high, normal, low. only_normal: the other queues, and the claimed hash, are empty.
-- Returns the reply of claim.lua, with the entries in place of their records. It stops at CLAIM_BYTES, after at least one
-- fetch. Every key is read before the first write. The number of commands hardly depends on the number of fetches.
local function claim_waiting(keys, want, now, only_normal)
  local claimed_before, next_retry, lengths = 0, nil, {[4] = 0, [5] = 0, [6] = redis.call('LLEN', keys[6]), [7] = 0}
  if not only_normal then
    claimed_before = redis.call('HLEN', keys[2])
    next_retry = redis.call('ZRANGE', keys[3], 0, 0, 'WITHSCORES')[2]
    for _, i in ipairs({4, 5, 7}) do lengths[i] = redis.call('LLEN', keys[i]) end
  end
  local AT_ONCE = 16 -- few, because elements that are not checked yet may be large
  local got, bytes, too_large, is_full = {}, 0, 0, false
  -- Adds the element to the claim or to the dead letters; returns false if it stays in its queue.
  local function claim_or_bury(entry)
    if is_full then return false end
    if #entry > MAX_ENTRY_BYTES then
      bury_large(keys[1], entry)
      too_large = too_large + 1
      return true
    end
    is_full = #got > 0 and bytes + #entry > CLAIM_BYTES
    if is_full then return false end
    got[#got + 1] = entry
    bytes = bytes + #entry
    return true
  end
  if next_retry and tonumber(next_retry) <= now then
    local due, gone = redis.call('ZRANGEBYSCORE', keys[3], '-inf', int(now), 'LIMIT', 0, want), {}
    for _, entry in ipairs(due) do
      if claim_or_bury(entry) then gone[#gone + 1] = entry end
    end
    in_slices(#gone, function(first, last) redis.call('ZREM', keys[3], unpack(gone, first, last)) end)
    next_retry = redis.call('ZRANGE', keys[3], 0, 0, 'WITHSCORES')[2]
  end
  local waiting = 0
  for i = 4, 7 do
    local left = lengths[i]
    while left > 0 and #got < want and not is_full do
      local popped, back = redis.call('LPOP', keys[i], math.min(left, want - #got, AT_ONCE)), {}
      for _, entry in ipairs(popped) do
        if not claim_or_bury(entry) then back[#back + 1] = entry end
      end
      for j = #back, 1, -1 do redis.call('LPUSH', keys[i], back[j]) end
      left = left - #popped + #back
    end
    waiting = waiting + left
  end
  -- A second entry with the same ID comes from another program. It moves to the end of the queue until the first is
  -- settled.
  local ids = {}
  for i, entry in ipairs(got) do ids[i] = id_of(entry) end
  local taken = claimed_before > 0 and values_of(keys[2], ids) or {}
  local mine, fields_of_mine, seen = {}, {}, {}
  for i, entry in ipairs(got) do
    if taken[i] or seen[ids[i]] then
      redis.call('RPUSH', keys[7], entry)
      waiting = waiting + 1
    else
      seen[ids[i]] = true
      mine[#mine + 1] = entry
      fields_of_mine[#fields_of_mine + 1] = ids[i]
      fields_of_mine[#fields_of_mine + 1] = entry
    end
  end
  in_slices(#fields_of_mine, function(first, last) redis.call('HSET', keys[2], unpack(fields_of_mine, first, last)) end)
  local retry_in = next_retry and math.max(0, tonumber(next_retry) - now) or -1
  return {now, mine, waiting, retry_in, mine, too_large}
end
