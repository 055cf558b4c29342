-- Takes a chunk that has just been submitted out of its lanes again, as far as it still waits there.
-- It writes nothing before it has freed something: Redis may be out of memory.
-- KEYS: batch, its lanes, its digests, batches, backlog, then for each group of fetches: lane, list; then
--       one for each fetch with a key
-- ARGV: batch id, number of groups, for each: number of elements, the elements as they are in Redis;
--       then the ids of the fetches with a key
-- Returns how many fetches of the batch are left.
local at, removed_in_all = 3, 0
local groups = tonumber(ARGV[2])
for group = 1, groups do
  local count, removed = tonumber(ARGV[at]), 0
  for i = 1, count do removed = removed + redis.call('LREM', KEYS[5 + 2 * group], -1, ARGV[at + i]) end
  count_open(KEYS[4 + 2 * group], KEYS[5], -removed)
  removed_in_all = removed_in_all + removed
  at = at + 1 + count
end
for i = at, #ARGV do
  local key = KEYS[6 + 2 * groups + i - at]
  if redis.call('GET', key) == ARGV[i] then redis.call('DEL', key) end
end
if removed_in_all > 0 then redis.call('HINCRBY', KEYS[1], 'total', -removed_in_all) end
local left = tonumber(redis.call('HGET', KEYS[1], 'total') or '0')
if left <= 0 then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return left
