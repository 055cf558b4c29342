-- Moves fetches from a held lane's queues to its claimed hash, first retries that are due, then what
-- was handed back, then by priority.
-- KEYS: lane, claimed, later, returned, high, normal, low
-- ARGV: token, how many, '1' to take only fetches whose deadline has passed
-- Returns {now, elements, how many still wait, ms until the next retry or -1}; {} to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local want, only_expired = tonumber(ARGV[2]), ARGV[3] == '1'
local now = now_ms()
local got = {}

local function take_retries()
  local found
  if only_expired then
    found = {}
    for _, element in ipairs(redis.call('ZRANGE', KEYS[3], 0, 999)) do
      if deadline_of(element) <= now then found[#found + 1] = element end
    end
  else
    found = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', int(now), 'LIMIT', 0, want)
  end
  for i = 1, math.min(#found, want) do
    redis.call('ZREM', KEYS[3], found[i])
    got[#got + 1] = found[i]
  end
end

local function expired_at_head(list_key)
  local elements = redis.call('LRANGE', list_key, 0, want - #got - 1)
  local count = 0
  while elements[count + 1] and deadline_of(elements[count + 1]) <= now do count = count + 1 end
  return count
end

local function take_waiting(list_key)
  local count = want - #got
  if count > 0 and only_expired then count = expired_at_head(list_key) end
  if count <= 0 then return end
  for _, element in ipairs(redis.call('LPOP', list_key, count) or {}) do got[#got + 1] = element end
end

take_retries()
for i = 4, 7 do take_waiting(KEYS[i]) end

-- Two elements of one id are not of our making; the second waits, at the end, for the first to be settled.
local mine = {}
for _, element in ipairs(got) do
  if redis.call('HSETNX', KEYS[2], id_of(element), element) == 1 then
    mine[#mine + 1] = element
  else
    redis.call('RPUSH', KEYS[7], element)
  end
end

local waiting = 0
for i = 4, 7 do waiting = waiting + redis.call('LLEN', KEYS[i]) end
local next_retry = redis.call('ZRANGE', KEYS[3], 0, 0, 'WITHSCORES')
local retry_in = next_retry[2] and math.max(0, tonumber(next_retry[2]) - now) or -1
return {now, mine, waiting, retry_in}
