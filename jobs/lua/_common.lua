-- Shared by every script; put in front of each when it is loaded.
-- A lane's hash (jobs/keys.py, lane): state is idle (or absent), scheduled or held.

local BATCH_ID_CHARS = 16
local FETCH_ID_CHARS = 25
local DEADLINE_CHARS = 13
local HEAD_CHARS = FETCH_ID_CHARS + DEADLINE_CHARS

-- Behind the id that a `key` holds: a fetch of another batch was told of it.
local COUNTED_ON = '+'

-- Redis's clock is the only one that counts: workers' and producers' clocks may be wrong.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(n)
  return string.format('%.0f', n)
end

local function id_of(element)
  return string.sub(element, 1, FETCH_ID_CHARS)
end

local function batch_of(element)
  return string.sub(element, 1, BATCH_ID_CHARS)
end

local function is_batch_id(text)
  return text and #text == BATCH_ID_CHARS and not string.find(text, '[^0-9a-f]')
end

local function deadline_of(element)
  return tonumber(string.sub(element, FETCH_ID_CHARS + 1, HEAD_CHARS)) or 0
end

-- Calls each(first, last) for slices of a list of that length: Lua's stack holds some 8,000 values at most.
local SLICE = 2000
local function in_slices(length, each)
  for first = 1, length, SLICE do each(first, math.min(length, first + SLICE - 1)) end
end

-- The values of many fields of a hash, false for those that it does not have.
local function values_of(hash_key, fields)
  local values = {}
  in_slices(#fields, function(first, last)
    for _, value in ipairs(redis.call('HMGET', hash_key, unpack(fields, first, last))) do values[#values + 1] = value end
  end)
  return values
end

-- The type of what is at a key, if it is not of this kind; a counter is a string that Redis can count with.
local COUNTER_CHARS = 18
local function foreign(kind, key)
  local found = redis.call('TYPE', key)['ok']
  if found == 'none' or found == kind then return nil end
  if found ~= 'string' or kind ~= 'counter' then return found end
  local text = redis.call('GET', key)
  local whole = #text <= COUNTER_CHARS and (text == '0' or string.find(text, '^-?[1-9]%d*$'))
  return not whole and found or nil
end

-- Something else than ours at a key must be found before the first write: a script that fails is not undone.
-- The message is read by jobs/scripts/runner.py.
local function must_be(kind, key)
  local found = foreign(kind, key)
  if found then error('WRONGTYPE at "' .. key .. '": a ' .. found .. ', not a ' .. kind) end
end

-- A number that something else than us may have written: 0 if it is none.
local function number(text)
  local found = tonumber(text or 0) or 0
  if found ~= found or found == math.huge or found == -math.huge then return 0 end
  return found
end

-- A time by which something must be done: the end of time if somebody else has written what is none.
local function deadline(text)
  return tonumber(text or 'inf') or math.huge
end

-- Only the owner with the current token may change a held lane.
local function fenced(lane_key, token)
  local lane = redis.call('HMGET', lane_key, 'state', 'token')
  return lane[1] == 'held' and lane[2] == token
end

-- A number greater than any before it. It grows with the clock, not only by one: a Redis that has come back
-- without its last second must not give a token again that somebody has from that second.
local function next_serial(serial_key)
  local t = redis.call('TIME')
  local clock = t[1] * 1000000 + t[2]
  local last = number(redis.call('GET', serial_key))
  return redis.call('INCRBY', serial_key, int(math.max(1, clock - last)))
end

-- Makes the lane due at due_ms under a new generation; a hand-off of an older one is ignored.
local function schedule(lane_key, attention_key, serial_key, name, due_ms, grace_ms)
  local generation = next_serial(serial_key)
  redis.call('HSET', lane_key, 'state', 'scheduled', 'generation', int(generation), 'due_ms', int(due_ms))
  redis.call('HDEL', lane_key, 'owner', 'token')
  redis.call('PERSIST', lane_key)
  redis.call('ZADD', attention_key, int(due_ms + grace_ms), name)
  return generation
end

-- Some fetch in the lane must end then: the lane is looked through in time, whatever it waits for.
local function note_deadline(lane_key, deadline_ms)
  local earliest = deadline(redis.call('HGET', lane_key, 'earliest_ms'))
  if deadline_ms < earliest then redis.call('HSET', lane_key, 'earliest_ms', int(deadline_ms)) end
end

-- After fetches were added: {generation, ms until due} if the lane must be woken, else nil.
-- A lane that cools down is woken for the earliest deadline, so that no fetch outlives its own.
local function wake_for_new(lane_key, attention_key, serial_key, name, deadline_ms, now, grace_ms)
  local lane = redis.call('HMGET', lane_key, 'state', 'due_ms', 'shut_until_ms')
  if lane[1] == 'held' then return nil end
  local shut_until = number(lane[3])
  local due = now
  if shut_until > now then due = math.max(now, math.min(shut_until, deadline_ms)) end
  if lane[1] == 'scheduled' and number(lane[2]) <= due then return nil end
  return {schedule(lane_key, attention_key, serial_key, name, due, grace_ms), due - now}
end

-- Wakes a lane that is due later: {generation, 0}; {} for one that is due, held or idle.
local function wake_now(lane_key, attention_key, serial_key, name, grace_ms)
  local lane = redis.call('HMGET', lane_key, 'state', 'due_ms')
  local now = now_ms()
  if lane[1] ~= 'scheduled' or number(lane[2]) <= now then return {} end
  return {schedule(lane_key, attention_key, serial_key, name, now, grace_ms), 0}
end

-- A batch that is new has the time of its making, and is on the list of batches.
local function list_if_new(batch_key, batches_key, batch_id, now)
  if redis.call('HSETNX', batch_key, 'created_ms', int(now)) == 1 then redis.call('ZADD', batches_key, int(now), batch_id) end
end

-- A message of the inbox that is none goes to the dead letters.
local function bury_message(dead_key, dead_length, note, message)
  redis.call('XADD', dead_key, 'MAXLEN', '~', dead_length, '*', 'door', 'inbox', 'reason', 'invalid',
    'note', note, 'element', message)
end

-- Whether all of a batch is submitted and has its results.
local function has_ended(batch_key)
  local batch = redis.call('HMGET', batch_key, 'sealed', 'total', 'done')
  return batch[1] == '1' and number(batch[3]) >= number(batch[2])
end

-- Marks a batch as whole; the TTL that it is to have.
local function seal(batch_key, finished_ttl, unfinished_ttl)
  redis.call('HSET', batch_key, 'sealed', 1)
  return has_ended(batch_key) and finished_ttl or unfinished_ttl
end

-- How many fetches without a result there are in the fleet. What is no count there stops nobody: a worker
-- puts it aside and counts again (worker/redis_support/key_repair.py).
local function count_in_fleet(backlog_key, by)
  redis.pcall('INCRBY', backlog_key, by)
end

-- How many fetches are in a lane. KEYS from first on: claimed, later, and the four lists that wait.
local function waits_in(first)
  local count = redis.call('HLEN', KEYS[first]) + redis.call('ZCARD', KEYS[first + 1])
  for i = first + 2, first + 5 do count = count + redis.call('LLEN', KEYS[i]) end
  return count
end

-- How many fetches without a result there are, in the lane and in the fleet.
local function count_open(lane_key, backlog_key, by)
  if by == 0 then return end
  redis.call('HSET', lane_key, 'open', int(number(redis.call('HGET', lane_key, 'open')) + by))
  if backlog_key then count_in_fleet(backlog_key, by) end
end
