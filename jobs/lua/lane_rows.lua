-- Describes lanes: a page of those that need attention, or those that are named. Changes nothing.
-- Called by jobs/scripts/views.py, lane_rows.
-- KEYS: attention
-- ARGV: first place of the page, last place, most bytes of a name, default time allowed for a fetch in s, most bytes of
--       entries to read for their times; then the parts before and after its name of the keys lane, claimed, later,
--       returned, high, normal and low; then the names, in place of the page
-- Returns the number of lanes that need attention, and for each of these lanes {name, state, due ms, shut until ms, why,
-- owner, number waiting, number claimed, Unix ms of the submit of the oldest waiting fetch or 0 if unknown, Unix ms of the
-- end of the lease if it is held, last failure}. A value of another program counts as none.
local FIELD_CHARS, NAMES_FROM, NORMAL, GATE_BYTES = 300, 20, 6, 65536
local names = {unpack(ARGV, NAMES_FROM)}
if #names == 0 then names = redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[2]) end
local default_s, left_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])

-- Returns the reply of a command for a key; none if the key has another type.
local function ask(none, ...)
  local reply = redis.pcall(...)
  return type(reply) == type(none) and not (type(reply) == 'table' and reply.err) and reply or none
end

local function submitted_ms(entry)
  left_bytes = left_bytes - #entry
  local at = deadline_of(entry)
  if at == 0 then return math.huge end
  local allowed_s = string.match(entry, '"deadline_s":(%d+%.?%d*)')
  return at - math.floor(1000 * (tonumber(allowed_s) or default_s))
end

-- Returns the length of a queue, and the time of the submit of its first fetch. It is in the order of submission.
local function queue(key)
  local length = ask(0, 'LLEN', key)
  if length == 0 or left_bytes <= 0 then return length, math.huge end
  return length, submitted_ms(ask('', 'LINDEX', key, 0))
end

-- Returns the last failure of a host from the saved state of its gate; '' without one.
local function last_failure(gate)
  if not gate or #gate > GATE_BYTES or not string.find(gate, '"last_failure":', 1, true) then return '' end
  local is_json, state = pcall(cjson.decode, gate)
  local words = is_json and type(state) == 'table' and state.last_failure
  return type(words) == 'string' and string.sub(words, 1, FIELD_CHARS) or ''
end

local function row(name)
  local keys = {}
  for i = 6, NAMES_FROM - 1, 2 do keys[#keys + 1] = ARGV[i] .. name .. ARGV[i + 1] end
  local lane = ask({}, 'HMGET', keys[1], 'state', 'due_ms', 'shut_until_ms', 'why', 'owner', 'gate')
  for i = 1, 5 do lane[i] = string.sub(lane[i] or '', 1, FIELD_CHARS) end
  local claimed = 0
  local waiting, oldest = queue(keys[NORMAL])
  -- Most lanes have fetches of normal priority only.
  if redis.call('EXISTS', keys[2], keys[3], keys[4], keys[5], keys[7]) > 0 then
    claimed = ask(0, 'HLEN', keys[2])
    for _, key in ipairs({keys[4], keys[5], keys[7]}) do
      local length, first = queue(key)
      waiting, oldest = waiting + length, math.min(oldest, first)
    end
    local retries = ask(0, 'ZCARD', keys[3])
    if retries > 0 and left_bytes > 0 then oldest = math.min(oldest, submitted_ms(ask({}, 'ZRANGE', keys[3], 0, 0)[1] or '')) end
    waiting = waiting + retries
  end
  local lease_ends = lane[1] == 'held' and ask('', 'ZSCORE', KEYS[1], name) or ''
  oldest = oldest < math.huge and int(oldest) or '0'
  local failure = last_failure(lane[6])
  return {name, lane[1], lane[2], lane[3], lane[4], lane[5], waiting, claimed, oldest, lease_ends, failure}
end

local rows = {}
for _, name in ipairs(names) do
  if #name <= tonumber(ARGV[3]) then rows[#rows + 1] = row(name) end
end
return {redis.call('ZCARD', KEYS[1]), rows}
