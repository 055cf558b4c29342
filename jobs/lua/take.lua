-- scheduled → held: a worker acquires lanes, each under a new token and a lease, and claims their first fetches.
-- Called by jobs/scripts/lanes.py, take_call.
-- KEYS: attention, serial, workers, the policy's version, deaths, handed,
--       then for each lane: lane, normal, claimed, its cancelled batches, later, returned, high, low
-- ARGV: owner, lease ms, number of lanes that the owner holds (-1 to ignore its share; lanes earlier in this call count as
--       held), ms without a heartbeat after which a worker is dead,
--       ms within which a held or due lane needs attention (lanes in a longer cool-down are not shared out),
--       ms for which a death counts, '1' if the lanes were handed over to workers like this one and need not be due,
--       then for each lane: name, generation ('' for any), most fetches to claim (0 for none)
-- Returns for each lane one of
--   {'taken', token, now, gate, policy version, 1 if the lane has cancelled batches, number of workers other than the last
--   owner that died recently (0 without orphans), operator who has reset the lane since its last owner ('' if none),
--   {orphaned entry …}, {its value in a record (records_of) …}, number of claims that were too large and became dead
--   letters, reply of claim.lua, or {} if nothing was claimed, because other work comes first, the host may be closed, or
--   earlier lanes of the call have CLAIM_BYTES};
--   {'early', ms until due}; 0 if it has orphans, and earlier lanes of the call have CLAIM_BYTES;
--   {'enough'} if the owner has its share of the lanes, so that another worker acquires this one;
--   {'stale'} if the notification has an old generation;
--   an error if a key of the lane has a conflicting value.
local EARLY_ALLOWED_MS, OWNER_CHARS, MOST_GATE_BYTES = 50, 300, 256 * 1024
local COMMON_KEYS, LANE_KEYS, COMMON_ARGS, LANE_ARGS = 6, 8, 7, 3
local now, is_handed = now_ms(), ARGV[7] == '1'
-- Ignore heartbeats in the future: another program wrote them, and they would count forever.
local workers = math.max(1, redis.call('ZCOUNT', KEYS[3], int(now - ARGV[4]), int(now + ARGV[4])))
local share = math.ceil(redis.call('ZCOUNT', KEYS[1], '-inf', int(now + ARGV[5])) / workers)
local policy_version = redis.call('GET', KEYS[4]) or ''
local leases, claimed, returned_bytes = {}, {}, 0

local function other_deaths(lane_key)
  local dead = redis.call('HGET', lane_key, 'last_owner') or ''
  local since = now - ARGV[6]
  local own = number(redis.call('ZSCORE', KEYS[5], dead)) > since and 1 or 0
  return math.max(0, redis.call('ZCOUNT', KEYS[5], '(' .. int(since), int(now)) - own)
end

-- Claims the first fetches of a lane that is held now. A conflicting value fails before the first write, and the next
-- claim of the owner reports it.
local function first_claim(keys, most, only_normal)
  local queues = {keys[1], keys[3], keys[5], keys[6], keys[7], keys[2], keys[8]}
  local is_done, claim = pcall(claim_waiting, queues, most, now, only_normal)
  if not is_done then return {} end
  for _, entry in ipairs(claim[2]) do
    claimed[#claimed + 1] = entry
    returned_bytes = returned_bytes + #entry
  end
  return claim
end

local function take(keys, held, name, generation, most)
  local lane = redis.call('HMGET', keys[1], 'state', 'generation', 'due_ms', 'gate', 'reset', 'needs', 'shut_until_ms', 'token')
  if is_handed then redis.call('HDEL', KEYS[6], name) end
  if lane[1] ~= 'scheduled' or (generation ~= '' and lane[2] ~= generation) then return {'stale'} end
  local early = number(lane[3]) - now
  if early > EARLY_ALLOWED_MS and early <= LONGEST_WAIT_MS and not (is_handed and lane[6]) then return {'early', early} end
  if held >= share then return {'enough'} end

  local cancelled, orphans, too_large, deaths = 0, {}, 0, 0
  local only_normal = redis.call('EXISTS', unpack(keys, 3)) == 0
  if not only_normal then
    if returned_bytes >= CLAIM_BYTES and redis.call('EXISTS', keys[3]) == 1 then return {'early', 0} end
    cancelled = redis.call('EXISTS', keys[4])
    orphans, too_large = claimed_entries(keys[3], keys[1])
    for _, entry in ipairs(orphans) do returned_bytes = returned_bytes + #entry end
    deaths = #orphans > 0 and other_deaths(keys[1]) or 0
  end
  local token = above(serial_of_call(KEYS[2]), lane[2], lane[8])
  redis.call('HSET', keys[1], 'state', 'held', 'owner', ARGV[1], 'token', int(token))
  if #orphans > 0 then redis.call('HDEL', keys[1], 'last_owner') end
  if lane[5] then redis.call('HDEL', keys[1], 'reset') end
  if lane[6] then
    redis.call('HDEL', keys[1], 'needs')
    redis.call('HDEL', KEYS[6], name)
  end
  leases[#leases + 1] = int(now + ARGV[2])
  leases[#leases + 1] = name

  local gate = lane[4] and #lane[4] <= MOST_GATE_BYTES and lane[4] or '' -- a larger one comes from another program
  local is_plain = #orphans + too_large + cancelled == 0 and not lane[5] and not string.find(gate, '"breaker"', 1, true)
  local claims = most > 0 and returned_bytes < CLAIM_BYTES and is_plain and number(lane[7]) <= now
  return {
    'taken', token, now, gate, policy_version, cancelled, deaths, string.sub(lane[5] or '', 1, OWNER_CHARS), orphans,
    records_of(orphans), too_large, claims and first_claim(keys, most, only_normal) or {},
  }
end

local replies = {}
for i = 1, (#KEYS - COMMON_KEYS) / LANE_KEYS do
  local first_key, first_arg = COMMON_KEYS + LANE_KEYS * (i - 1) + 1, COMMON_ARGS + LANE_ARGS * (i - 1) + 1
  local keys = {unpack(KEYS, first_key, first_key + LANE_KEYS - 1)}
  local held = tonumber(ARGV[3]) < 0 and -1 or ARGV[3] + i - 1
  replies[i] = alone(take, keys, held, ARGV[first_arg], ARGV[first_arg + 1], tonumber(ARGV[first_arg + 2]))
end
in_slices(#leases, function(first, last) redis.call('ZADD', KEYS[1], unpack(leases, first, last)) end)
local records, at = records_of(claimed), 0
for _, reply in ipairs(replies) do
  local claim = reply[12]
  if claim and claim[2] then
    claim[5] = {}
    for place in ipairs(claim[2]) do claim[5][place] = records[at + place] end
    at = at + #claim[2]
  end
end
return replies
