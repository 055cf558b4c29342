-- scheduled → held: gives the lane to a worker, under a new token and a lease, and claims its first fetches.
-- Called by jobs/scripts/lanes.py, take_call.
-- KEYS: lane, claimed, attention, serial, workers, its cancelled batches, the policy's version, deaths, handed,
--       later, returned, high, normal, low
-- ARGV: lane name, generation ('' for any), owner, lease ms, how many lanes the owner holds (-1 to take the lane
--       whatever its share is), after how many ms without a heartbeat a worker is dead,
--       within how many ms a held or due lane needs attention; lanes that cool down longer are not shared out,
--       for how many ms a death counts, '1' if the lane is left to workers like this one, whether it is due or not,
--       the most fetches to claim (0 for none)
-- Returns one of
--   {'taken', token, now, gate, policy version, 1 if batches are cancelled in it, how many workers apart from the last owner
--   died lately (0 without claims), the operator who has reset the lane since ('' for none), {claim of the last
--   owner, which died …}, {what the record of each claim's batch says …}, how many
--   claims were too large and are dead letters, what claim.lua returns, or {} if nothing was claimed: the owner has
--   more to see to first, or the host may be closed};
--   {'early', ms until due};
--   {'enough'} if the owner has its share of the lanes, so another worker should take this one;
--   {'stale'} if the notification has an old generation.
local EARLY_ALLOWED_MS, OWNER_CHARS = 50, 300
local lane = redis.call('HMGET', KEYS[1], 'state', 'generation', 'due_ms', 'gate', 'reset', 'needs', 'shut_until_ms')
if ARGV[9] == '1' then redis.call('HDEL', KEYS[9], ARGV[1]) end
if lane[1] ~= 'scheduled' or (ARGV[2] ~= '' and lane[2] ~= ARGV[2]) then return {'stale'} end
local now = now_ms()
local early = number(lane[3]) - now
if early > EARLY_ALLOWED_MS and early <= LONGEST_WAIT_MS and not (ARGV[9] == '1' and lane[6]) then return {'early', early} end

-- A heartbeat that is to come is another program's: it would count for ever.
local workers = math.max(1, redis.call('ZCOUNT', KEYS[5], int(now - ARGV[6]), int(now + ARGV[6])))
local busy = redis.call('ZCOUNT', KEYS[3], '-inf', int(now + ARGV[7]))
if tonumber(ARGV[5]) >= math.ceil(busy / workers) then return {'enough'} end

local policy_version, cancelled = redis.call('GET', KEYS[7]) or '', redis.call('EXISTS', KEYS[6])
local orphans, too_large = claimed_entries(KEYS[2], KEYS[1])
local other_deaths = 0
if #orphans > 0 then
  local dead = redis.call('HGET', KEYS[1], 'last_owner') or ''
  local since = now - ARGV[8]
  local own = number(redis.call('ZSCORE', KEYS[8], dead)) > since and 1 or 0
  other_deaths = math.max(0, redis.call('ZCOUNT', KEYS[8], '(' .. int(since), int(now)) - own)
end
local token = next_serial(KEYS[4], KEYS[1])
redis.call('HSET', KEYS[1], 'state', 'held', 'owner', ARGV[3], 'token', int(token))
if #orphans > 0 then redis.call('HDEL', KEYS[1], 'last_owner') end
if lane[5] then redis.call('HDEL', KEYS[1], 'reset') end
if lane[6] then
  redis.call('HDEL', KEYS[1], 'needs')
  redis.call('HDEL', KEYS[9], ARGV[1])
end
redis.call('ZADD', KEYS[3], int(now + ARGV[4]), ARGV[1])
local MOST_GATE_BYTES = 256 * 1024
local gate = lane[4] and #lane[4] <= MOST_GATE_BYTES and lane[4] or '' -- a larger one is not ours
local claim = {}
local is_plain = #orphans + too_large + cancelled == 0 and not lane[5] and not string.find(gate, '"breaker"', 1, true)
if tonumber(ARGV[10]) > 0 and is_plain and number(lane[7]) <= now then
  -- A key with a foreign value fails before its first write. The owner's own claim reports it.
  local is_done, found = pcall(claim_waiting, {KEYS[1], KEYS[2], unpack(KEYS, 10)}, tonumber(ARGV[10]), now)
  if is_done then claim = found end
end
return {
  'taken', token, now, gate, policy_version, cancelled, other_deaths, string.sub(lane[5] or '', 1, OWNER_CHARS), orphans,
  records_of(orphans), too_large, claim,
}
