-- Ends fetches that are open in the record of a batch although every deadline of the batch has long passed: their
-- entries were lost or damaged. If a lane may still hold fetches of the batch, its owner ends them.
-- Called by jobs/scripts/batches.py, end_lost.
-- KEYS: batch, results, its lanes, results of all batches
-- ARGV: ms after the last deadline, most fetches to end, the result of a fetch before and after its ID, finished TTL ms,
--       unfinished TTL ms, '1' to add results to the stream of all batches too
-- Returns the number of fetches ended. The backlogs are corrected when a lane is empty (release.lua, settle.lua).
local RECORD_BYTES, ZERO, READ_PLACES = 6, string.rep('\0', 6), 4000
for i, kind in ipairs({'hash', 'stream', 'set', 'stream'}) do must_be(kind, KEYS[i]) end
local batch = redis.call('HMGET', KEYS[1], 'total', 'done', 'recorded', 'chunks', 'recorded_done', 'last_deadline_ms',
  'sealed', 'failed', 'taken_ms')
local total, done, last_deadline = number(batch[1]), number(batch[2]), number(batch[6])
if not has_record(batch[3], batch[4]) or last_deadline == 0 or now_ms() <= last_deadline + ARGV[1] then return 0 end
if last_deadline < number(batch[9]) then return 0 end -- written by another program
-- Results of older workers do not end fetches in the record.
if done >= total or number(batch[5]) ~= done then return 0 end
for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local lane = redis.pcall('HMGET', LANE_PREFIX .. name, 'state', 'earliest_ms')
  local is_busy = lane[1] == 'held' or lane[1] == 'scheduled'
  if is_busy and deadline(lane[2]) <= last_deadline then return 0 end
end

-- Returns up to `limit` open places in one string of the record.
local function open_places(key, limit)
  local found = {}
  local place = math.floor(redis.call('BITPOS', key, 1) / (8 * RECORD_BYTES))
  while place >= 0 and #found < limit do
    local bytes = redis.call('GETRANGE', key, place * RECORD_BYTES, (place + READ_PLACES) * RECORD_BYTES - 1)
    if bytes == '' then break end
    for i = 0, math.floor(#bytes / RECORD_BYTES) - 1 do
      local value = string.sub(bytes, i * RECORD_BYTES + 1, (i + 1) * RECORD_BYTES)
      if value ~= ZERO and #found < limit then found[#found + 1] = place + i end
    end
    place = place + READ_PLACES
  end
  return found
end

local ended, batch_id = 0, string.sub(KEYS[1], #BATCH_PREFIX + 1)
local limit = math.min(tonumber(ARGV[2]), total - done)
for segment = 0, last_segment(total) do
  local key = record_key(KEYS[1], segment)
  must_be('string', key)
  local places, sets = open_places(key, limit - ended), {}
  for _, place in ipairs(places) do
    sets[#sets + 1], sets[#sets + 2], sets[#sets + 3], sets[#sets + 4] = 'SET', 'u48', '#' .. int(place), 0
  end
  in_slices(#places, function(first, last) redis.call('BITFIELD', key, unpack(sets, 4 * first - 3, 4 * last)) end)
  for _, place in ipairs(places) do
    local id = batch_id .. '-' .. string.format('%08x', segment * SEGMENT_PLACES + place)
    local result = ARGV[3] .. id .. ARGV[4]
    redis.call('XADD', KEYS[2], '*', 'r', result)
    if ARGV[7] == '1' then redis.call('XADD', KEYS[4], '*', 'r', result) end
  end
  ended = ended + #places
end
if ended == 0 then return 0 end
done = done + ended
redis.call('HSET', KEYS[1], 'done', int(done), 'recorded_done', int(done), 'failed', int(number(batch[8]) + ended))
local has_all = batch[7] == '1' and done >= total
if has_all then drop_record(KEYS[1], total) end
for i = 1, 2 do redis.call('PEXPIRE', KEYS[i], has_all and ARGV[5] or ARGV[6]) end
return ended
