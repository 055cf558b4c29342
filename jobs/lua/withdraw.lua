-- Claims fetches of one kind in one stretch of one of a held lane's queues.
-- Called by jobs/scripts/lanes.py, withdraw.
-- KEYS: lane, claimed, queue
-- ARGV: token, 'batch', 'expired' or 'all', batch id, offset, how many to look at
-- Returns {1, elements, offset to go on from, or -1 at the end, the earliest deadline of those that stay, or 0};
-- {} to a stale owner. Offsets hold as long as nobody claims, which only the owner may.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local GONE = 'withdrawn'
local kind, offset, count = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local is_list = redis.call('TYPE', KEYS[3])['ok'] ~= 'zset'
local found = redis.call(is_list and 'LRANGE' or 'ZRANGE', KEYS[3], offset, offset + count - 1)

local function wanted(element)
  if kind == 'batch' then return batch_of(element) == ARGV[3] end
  return kind == 'all' or deadline_of(element) <= now
end

local mine, earliest = {}, 0
for i, element in ipairs(found) do
  -- Two elements of one id are not of our making; the second stays until the first is settled.
  if wanted(element) and redis.call('HSETNX', KEYS[2], id_of(element), element) == 1 then
    mine[#mine + 1] = element
    if is_list then redis.call('LSET', KEYS[3], offset + i - 1, GONE) else redis.call('ZREM', KEYS[3], element) end
  elseif earliest == 0 or deadline_of(element) < earliest then
    earliest = deadline_of(element)
  end
end
if is_list and #mine > 0 then redis.call('LREM', KEYS[3], #mine, GONE) end
return {1, mine, #found < count and -1 or offset + #found - #mine, earliest}
