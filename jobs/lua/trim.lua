-- Counts or removes results that are too old or too many in the stream of all results.
-- Called by jobs/scripts/batches.py, trim.
-- KEYS: results of all batches
-- ARGV: Unix ms of the oldest result to keep, number to keep, most to count or remove, '1' to remove
-- Returns {number of results beyond the limits, consumer groups that have not acknowledged all of them …}.
local function parts_of(id)
  local ms, sequence = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(sequence)
end

local function before(a, b)
  local a_ms, a_sequence = parts_of(a)
  local b_ms, b_sequence = parts_of(b)
  return a_ms < b_ms or (a_ms == b_ms and a_sequence < b_sequence)
end

local excess = math.min(redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2]), tonumber(ARGV[3]))
local going = {}
if excess > 0 then going = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', excess) end
local old = redis.call('XRANGE', KEYS[1], '-', int(tonumber(ARGV[1]) - 1), 'COUNT', ARGV[3])
if #old > #going then going = old end
if #going == 0 then return {0} end
local last = going[#going][1]

local reply = {#going}
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
  local unread = before(group['last-delivered-id'], last)
  if unread or #redis.call('XPENDING', KEYS[1], group['name'], '-', last, 1) > 0 then reply[#reply + 1] = group['name'] end
end
if ARGV[4] == '1' then
  local ms, sequence = string.match(last, '(%d+)-(%d+)')
  redis.call('XTRIM', KEYS[1], 'MINID', ms .. '-' .. int(sequence + 1))
end
return reply
