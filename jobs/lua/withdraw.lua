-- Claims the fetches of one batch in one stretch of one of a held lane's queues.
-- KEYS: lane, claimed, queue
-- ARGV: token, batch id, offset, how many to look at
-- Returns {1, elements, offset to go on from, or -1 at the end}; {} to a stale owner. Offsets hold as long as
-- nobody claims, which only the owner may.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local GONE = 'withdrawn'
local offset, count = tonumber(ARGV[3]), tonumber(ARGV[4])
local is_list = redis.call('TYPE', KEYS[3])['ok'] ~= 'zset'
local found = redis.call(is_list and 'LRANGE' or 'ZRANGE', KEYS[3], offset, offset + count - 1)

local mine = {}
for i, element in ipairs(found) do
  if batch_of(element) == ARGV[2] then
    mine[#mine + 1] = element
    if is_list then redis.call('LSET', KEYS[3], offset + i - 1, GONE) else redis.call('ZREM', KEYS[3], element) end
    redis.call('HSETNX', KEYS[2], id_of(element), element)
  end
end
if is_list and #mine > 0 then redis.call('LREM', KEYS[3], #mine, GONE) end
return {1, mine, #found < count and -1 or offset + #found - #mine}
