-- Removes a chunk that was just submitted, from its lanes and from the record of the batch. A fetch stays if it no longer
-- waits, or if another batch refers to its key. Fetches that stay form a sealed batch, which accepts no more chunks.
-- It frees memory before it adds data, because Redis may be out of memory.
-- Called by jobs/scripts/submission.py, undo.
-- KEYS: batch, its lanes, its digests, batches, backlog, then for each group of fetches: lane, list; then
--       one for each fetch with a key
-- ARGV: batch ID, number of groups, for each: number of entries, the serialized entries as Redis stores them;
--       then the IDs of the fetches with a key
-- Returns the number of fetches left in the batch.
local at, removed_in_all = 3, 0
local recorded = redis.call('HGET', KEYS[1], 'recorded')
local ended = {} -- record key → arguments of BITFIELD
local groups = tonumber(ARGV[2])

local keys_at = 3
for _ = 1, groups do keys_at = keys_at + 1 + tonumber(ARGV[keys_at]) end
local counted_on = {}
for i = keys_at, #ARGV do
  local key = KEYS[6 + 2 * groups + i - keys_at]
  local holder = redis.call('GET', key)
  if holder == ARGV[i] then redis.call('DEL', key) end
  if holder == ARGV[i] .. COUNTED_ON then counted_on[ARGV[i]] = true end
end

for group = 1, groups do
  local count, removed = tonumber(ARGV[at]), 0
  for i = 1, count do
    local entry = ARGV[at + i]
    local id = id_of(entry)
    if not counted_on[id] and redis.call('LREM', KEYS[5 + 2 * group], -1, entry) == 1 then
      removed = removed + 1
      local _, key, place = recorded_at(id)
      local sets = ended[key] or {}
      ended[key] = sets
      sets[#sets + 1], sets[#sets + 2], sets[#sets + 3], sets[#sets + 4] = 'SET', 'u48', place, 0
    end
  end
  if removed > 0 then
    local lane_key = KEYS[4 + 2 * group]
    redis.call('HSET', lane_key, 'open', int(number(redis.call('HGET', lane_key, 'open')) - removed))
    count_in_fleet(KEYS[5], -removed)
  end
  removed_in_all = removed_in_all + removed
  at = at + 1 + count
end
local left = number(redis.call('HGET', KEYS[1], 'total')) - removed_in_all
if removed_in_all > 0 then redis.call('HSET', KEYS[1], 'total', int(left)) end
if left <= 0 then
  for segment = 0, last_segment(removed_in_all) do redis.call('UNLINK', record_key(KEYS[1], segment)) end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('ZREM', KEYS[4], ARGV[1])
elseif removed_in_all > 0 then
  for key, sets in pairs(recorded and ended or {}) do
    in_slices(#sets / 4, function(first, last) redis.call('BITFIELD', key, unpack(sets, 4 * first - 3, 4 * last)) end)
  end
  redis.call('DEL', KEYS[3])
  redis.call('HSET', KEYS[1], 'sealed', 1)
end
return left
