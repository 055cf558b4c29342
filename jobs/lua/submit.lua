-- Appends one chunk of a batch to its lanes, completely or not at all. It is safe to send again: an accepted chunk is not
-- appended twice. It also writes the record of the batch (jobs/keys.py, record).
-- Called by jobs/scripts/submission.py, submit.
-- KEYS: batch, its lanes, its digests, batches, attention, serial, backlog, then the lanes whose backlog limit is
--       checked, then for each group of fetches: lane, list; then one for each fetch with a key
-- ARGV: batch ID, chunk number (from 1), number of its fetches, digest of the chunk ('' if none), '1' if it is the last,
--       finished TTL ms, unfinished TTL ms, grace ms,
--       backlog limits of the fleet and of a lane (0: no limit), number of fetches that must fit in the fleet,
--       number of lanes to check, for each the number of fetches that must fit in it;
--       number of groups, for each: lane name, number of entries, the serialized entries, with the time allowed
--       in place of the deadline; number of fetches with a key, for each: fetch ID, TTL ms;
--       for each group the fingerprints of its fetches, 12 hex digits each; without them the batch gets no record;
--       then the URL of the batch's webhook, if it has one
-- Returns one of
--   {'taken', Unix ms, repeats, notifications}: repeats are pairs of a fetch ID and the ID of the earlier fetch that has
--     its key; a notification is {lane name, generation, ms until due};
--   {'full', 'fleet' or 'lane', lane key or '', number of its fetches without a result};
--   {'cancelled'};
--   {'gap'} if an earlier chunk is missing, for example after a failover to a replica that lagged;
--   {'other'} if the batch holds other fetches.
for i, kind in ipairs({'hash', 'set', 'list', 'zset', 'zset', 'counter', 'counter'}) do must_be(kind, KEYS[i]) end
local batch_id, chunk, digest = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local batch = redis.call('HMGET', KEYS[1], 'chunks', 'cancel_ms', 'sealed', 'taken_ms', 'recorded',
  'last_deadline_ms', 'total')
local taken_before = chunk <= number(batch[1])
if batch[2] then return {'cancelled'} end
local whole_differs = not taken_before or (ARGV[5] == '1' and chunk < number(batch[1]))
if batch[3] and whole_differs then return {'other'} end
if taken_before and digest ~= '' and redis.call('LINDEX', KEYS[3], chunk - 1) ~= digest then return {'other'} end
if chunk > number(batch[1]) + 1 then return {'gap'} end
local now = now_ms()

local limited_lanes = tonumber(ARGV[12])
local groups_at = 13 + limited_lanes
local groups = tonumber(ARGV[groups_at])
local keyed_at = 8 + limited_lanes + 2 * groups

local function full(place, open_now, needed, limit)
  open_now = math.max(0, number(open_now))
  if limit > 0 and open_now > 0 and open_now + needed > limit then return {'full', place[1], place[2], open_now} end
end

local function backlog_refusal()
  local refusal = full({'fleet', ''}, redis.call('GET', KEYS[7]), tonumber(ARGV[11]), tonumber(ARGV[9]))
  for i = 1, limited_lanes do
    local lane_key = KEYS[7 + i]
    refusal = refusal
      or full({'lane', lane_key}, redis.call('HGET', lane_key, 'open'), tonumber(ARGV[12 + i]), tonumber(ARGV[10]))
  end
  return refusal
end

for i = 8 + limited_lanes, keyed_at - 1, 2 do
  must_be('hash', KEYS[i])
  must_be('list', KEYS[i + 1])
end
must_be('string', record_key(KEYS[1], 0))
for i = keyed_at, #KEYS do must_be('string', KEYS[i]) end
local refusal = not taken_before and backlog_refusal()
if refusal then return refusal end

-- Skip the groups: the keys after them decide which entries are appended.
local at = groups_at + 1
for _ = 1, groups do at = at + 2 + tonumber(ARGV[at + 1]) end
local fingerprints_at = at + 1 + 2 * tonumber(ARGV[at])
local notify = ARGV[fingerprints_at + groups] or ''
local records = #ARGV >= fingerprints_at and number(batch[5]) == number(batch[1])
-- Fails before the first write if the Redis user may not write records, as in users.acl of earlier versions.
if records then redis.call('BITFIELD', record_key(KEYS[1], 0), 'GET', 'u1', 0) end
if notify ~= '' then must_be('zset', WEBHOOKS_KEY) end
local repeats, repeated = {}, {}
for i = 1, tonumber(ARGV[at]) do
  local id, ttl = ARGV[at + 2 * i - 1], ARGV[at + 2 * i]
  local key = KEYS[keyed_at + i - 1]
  local holder = redis.call('GET', key)
  local has = holder and id_of(holder)
  if not has and not taken_before then
    redis.call('SET', key, id, 'PX', ttl)
  elseif has and has ~= id then
    repeats[#repeats + 1] = {id, has}
    repeated[id] = true
    if holder == has and batch_of(has) ~= batch_id then redis.call('SET', key, has .. COUNTED_ON, 'KEEPTTL') end
  end
end
if taken_before then
  -- undo.lua finds the entries of the last chunk with this time.
  local taken_ms = chunk == number(batch[1]) and tonumber(batch[4]) or now
  return {'taken', taken_ms, repeats, {}}
end

local recorded, last_deadline = {}, number(batch[6]) -- record key → arguments of BITFIELD

local function record(id, fingerprint, deadline)
  local _, key, place = recorded_at(id)
  local sets = recorded[key] or {}
  recorded[key] = sets
  local value = (fingerprint + deadline) % RECORD_MODULUS
  sets[#sets + 1], sets[#sets + 2], sets[#sets + 3], sets[#sets + 4] = 'SET', 'u48', place, int(math.max(value, 1))
end

-- Appends `count` entries from ARGV[from]; returns the earliest deadline and the number appended.
local function append(list_key, from, count, fingerprints)
  local entries, earliest = {}, math.huge
  for i = 1, count do
    local entry = ARGV[from + i - 1]
    local id = id_of(entry)
    if not repeated[id] then
      local deadline = now + deadline_of(entry)
      entries[#entries + 1] = id .. string.format('%013.0f', deadline) .. string.sub(entry, HEAD_CHARS + 1)
      earliest = math.min(earliest, deadline)
      last_deadline = math.max(last_deadline, deadline)
      if records then record(id, tonumber(string.sub(fingerprints, 12 * i - 11, 12 * i), 16), deadline) end
    end
  end
  if #entries > 0 then redis.call('RPUSH', list_key, unpack(entries)) end
  return earliest, #entries
end

local notifications, names, added_in_all = {}, {}, 0
local due_lanes, other_lanes = {}, {} -- arguments of ZADD
at = groups_at + 1
for group = 1, groups do
  local lane_key, list_key = KEYS[6 + limited_lanes + 2 * group], KEYS[7 + limited_lanes + 2 * group]
  local name, count = ARGV[at], tonumber(ARGV[at + 1])
  local earliest, added = append(list_key, at + 2, count, ARGV[fingerprints_at + group - 1])
  if added > 0 then
    local generation, due = note_added(lane_key, KEYS[6], added, earliest, now)
    if generation then notifications[#notifications + 1] = {name, generation, due - now} end
    local places = generation and due_lanes or other_lanes
    places[#places + 1] = int((due or now) + ARGV[8])
    places[#places + 1] = name
    names[#names + 1] = name
    added_in_all = added_in_all + added
  end
  at = at + 2 + count
end

in_slices(#due_lanes, function(first, last) redis.call('ZADD', KEYS[5], unpack(due_lanes, first, last)) end)
-- No sweep would see a lane whose place in the schedule another program has removed.
in_slices(#other_lanes, function(first, last) redis.call('ZADD', KEYS[5], 'NX', unpack(other_lanes, first, last)) end)
if added_in_all > 0 then count_in_fleet(KEYS[7], added_in_all) end

list_if_new(KEYS[1], KEYS[4], batch_id, now)
set_webhook(KEYS[1], batch_id, notify, now)
redis.call('HSET', KEYS[1], 'chunks', chunk, 'taken_ms', int(now))
redis.call('HSET', KEYS[1], 'total', int(number(batch[7]) + added_in_all))
if records then
  -- The first chunk always creates the first string: a record without it is lost.
  local first_key = record_key(KEYS[1], 0)
  if chunk == 1 and not recorded[first_key] then recorded[first_key] = {'SET', 'u48', '#0', 0} end
  for key, sets in pairs(recorded) do
    in_slices(#sets / 4, function(first, last) redis.call('BITFIELD', key, unpack(sets, 4 * first - 3, 4 * last)) end)
    redis.call('PEXPIRE', key, ARGV[7])
  end
  redis.call('HSET', KEYS[1], 'recorded', chunk, 'last_deadline_ms', int(last_deadline))
end
if digest ~= '' then redis.call('RPUSH', KEYS[3], digest) end
if #names > 0 then redis.call('SADD', KEYS[2], unpack(names)) end
local ttl = ARGV[7]
if ARGV[5] == '1' then ttl = seal(KEYS[1], ARGV[6], ARGV[7]) end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl) end
return {'taken', now, repeats, notifications}
