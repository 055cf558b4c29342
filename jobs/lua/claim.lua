-- Moves fetches from a held lane's queues to its claimed hash, first retries that are due, then what
-- was handed back, then by priority.
-- Called by jobs/scripts/lanes.py, claim_call.
-- KEYS: lane, claimed, later, returned, high, normal, low
-- ARGV: token, how many
-- Returns {now, elements, how many still wait, ms until the next retry or -1}; {} to a stale owner.
-- As many commands for one fetch as for many. All keys are looked at before anything is taken out of one.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local want = tonumber(ARGV[2])
local now = now_ms()
local claimed_before = redis.call('HLEN', KEYS[2])
local next_retry = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
local lengths = {}
for i = 4, 7 do lengths[i] = redis.call('LLEN', KEYS[i]) end

local got = {}
if next_retry and tonumber(next_retry) <= now then
  got = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', int(now), 'LIMIT', 0, want)
  in_slices(#got, function(first, last) redis.call('ZREM', KEYS[3], unpack(got, first, last)) end)
  next_retry = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')[2]
end
local waiting = 0
for i = 4, 7 do
  local count = math.min(lengths[i], want - #got)
  if count > 0 then
    for _, element in ipairs(redis.call('LPOP', KEYS[i], count)) do got[#got + 1] = element end
  end
  waiting = waiting + lengths[i] - count
end

-- Two elements of one id are not of our making; the second waits, at the end, for the first to be settled.
local ids = {}
for i, element in ipairs(got) do ids[i] = id_of(element) end
local taken = claimed_before > 0 and values_of(KEYS[2], ids) or {}
local mine, pairs_of_mine, seen = {}, {}, {}
for i, element in ipairs(got) do
  if taken[i] or seen[ids[i]] then
    redis.call('RPUSH', KEYS[7], element)
    waiting = waiting + 1
  else
    seen[ids[i]] = true
    mine[#mine + 1] = element
    pairs_of_mine[#pairs_of_mine + 1] = ids[i]
    pairs_of_mine[#pairs_of_mine + 1] = element
  end
end
in_slices(#pairs_of_mine, function(first, last) redis.call('HSET', KEYS[2], unpack(pairs_of_mine, first, last)) end)

local retry_in = next_retry and math.max(0, tonumber(next_retry) - now) or -1
return {now, mine, waiting, retry_in}
