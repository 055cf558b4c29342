-- Claims the fetches of one kind among some entries of a queue of a held lane.
-- Called by jobs/scripts/lanes.py, withdraw.
-- KEYS: lane, claimed, queue
-- ARGV: token, 'batch', 'expired' or 'all', batch ID, offset, number of entries to check
-- Returns {serialized entries, next offset or -1 at the end, the earliest deadline of the entries that stay or 0, their
-- values in records (records_of), number of elements that were too large and became dead letters}; {} if the token is
-- stale. Offsets stay valid because only the owner claims.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local REMOVED = 'withdrawn'
local kind, offset, count = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local is_list = redis.call('TYPE', KEYS[3])['ok'] ~= 'zset'
local found = redis.call(is_list and 'LRANGE' or 'ZRANGE', KEYS[3], offset, offset + count - 1)

local function wanted(entry)
  if kind == 'batch' then return batch_of(entry) == ARGV[3] end
  return kind == 'all' or deadline_of(entry) <= now
end

local mine, earliest, bytes, too_large, seen = {}, 0, 0, 0, 0
for i, entry in ipairs(found) do
  local is_large = #entry > MAX_ENTRY_BYTES
  if not is_large and #mine > 0 and bytes + #entry > CLAIM_BYTES then break end
  seen = i
  if is_large then
    bury_large(KEYS[1], entry)
    too_large = too_large + 1
  end
  -- A second entry with the same id can only come from another program. It stays until the first is settled.
  if is_large or wanted(entry) and redis.call('HSETNX', KEYS[2], id_of(entry), entry) == 1 then
    if not is_large then
      mine[#mine + 1] = entry
      bytes = bytes + #entry
    end
    if is_list then redis.call('LSET', KEYS[3], offset + i - 1, REMOVED) else redis.call('ZREM', KEYS[3], entry) end
  elseif earliest == 0 or deadline_of(entry) < earliest then
    earliest = deadline_of(entry)
  end
end
local gone = #mine + too_large
if is_list and gone > 0 then redis.call('LREM', KEYS[3], gone, REMOVED) end
local is_end = seen == #found and #found < count
return {mine, is_end and -1 or offset + seen - gone, earliest, records_of(mine), too_large}
