-- Moves fetches from the queues of a held lane to its claimed hash: due retries first, then returned fetches,
-- then by priority.
-- Called by jobs/scripts/lanes.py, claim_call.
-- KEYS: lane, claimed, later, returned, high, normal, low
-- ARGV: token, the most fetches to claim
-- Returns {now, serialized entries, how many fetches still wait, ms until the next retry or -1, for each entry what
-- the record of its batch says (records_of), how many elements were too large and are dead letters}; {} if the token
-- is stale. It claims fewer fetches if these have more than CLAIM_BYTES, and at least one.
-- The number of commands depends on the number of batches, and hardly on that of fetches.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local want = tonumber(ARGV[2])
local now = now_ms()
local claimed_before = redis.call('HLEN', KEYS[2])
local next_retry = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
local lengths = {}
for i = 4, 7 do lengths[i] = redis.call('LLEN', KEYS[i]) end

local AT_ONCE = 16 -- elements may be large until they were looked at
local got, bytes, too_large, is_full = {}, 0, 0, false

-- Returns whether the element leaves its queue: into the claim, or to the dead letters.
local function leaves(entry)
  if is_full then return false end
  if #entry > MAX_ENTRY_BYTES then
    bury_large(KEYS[1], entry)
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
  local due, gone = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', int(now), 'LIMIT', 0, want), {}
  for _, entry in ipairs(due) do
    if leaves(entry) then gone[#gone + 1] = entry end
  end
  in_slices(#gone, function(first, last) redis.call('ZREM', KEYS[3], unpack(gone, first, last)) end)
  next_retry = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
end
local waiting = 0
for i = 4, 7 do
  local left = lengths[i]
  while left > 0 and #got < want and not is_full do
    local popped, back = redis.call('LPOP', KEYS[i], math.min(left, want - #got, AT_ONCE)), {}
    for _, entry in ipairs(popped) do
      if not leaves(entry) then back[#back + 1] = entry end
    end
    for j = #back, 1, -1 do redis.call('LPUSH', KEYS[i], back[j]) end
    left = left - #popped + #back
  end
  waiting = waiting + left
end

-- A second entry with the same id can only come from another program. It goes to the end of the queue until the
-- first is settled.
local ids = {}
for i, entry in ipairs(got) do ids[i] = id_of(entry) end
local taken = claimed_before > 0 and values_of(KEYS[2], ids) or {}
local mine, fields_of_mine, seen = {}, {}, {}
for i, entry in ipairs(got) do
  if taken[i] or seen[ids[i]] then
    redis.call('RPUSH', KEYS[7], entry)
    waiting = waiting + 1
  else
    seen[ids[i]] = true
    mine[#mine + 1] = entry
    fields_of_mine[#fields_of_mine + 1] = ids[i]
    fields_of_mine[#fields_of_mine + 1] = entry
  end
end
in_slices(#fields_of_mine, function(first, last) redis.call('HSET', KEYS[2], unpack(fields_of_mine, first, last)) end)

local retry_in = next_retry and math.max(0, tonumber(next_retry) - now) or -1
return {now, mine, waiting, retry_in, records_of(mine), too_large}
