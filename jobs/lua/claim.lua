-- Moves fetches from a held lane's queues to its claimed hash, first retries that are due, then what
-- was handed back, then by priority.
-- KEYS: lane, claimed, later, returned, high, normal, low
-- ARGV: token, how many
-- Returns {now, elements, how many still wait, ms until the next retry or -1}; {} to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local want = tonumber(ARGV[2])
local now = now_ms()
local got = {}

for _, element in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', int(now), 'LIMIT', 0, want)) do
  redis.call('ZREM', KEYS[3], element)
  got[#got + 1] = element
end
for i = 4, 7 do
  if #got < want then
    for _, element in ipairs(redis.call('LPOP', KEYS[i], want - #got) or {}) do got[#got + 1] = element end
  end
end

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
