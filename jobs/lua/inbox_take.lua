-- Moves messages from an inbox to its taken list, under the id of the batch that they become.
-- Messages that were not acknowledged are returned again, with the same batch ID.
-- The call for the shared inbox also acquires the lease of all inboxes. A worker that reads a newer version acquires it
-- at once.
-- Called by jobs/scripts/inbox.py, inbox_take.
-- KEYS: inbox, taken, intake, dead, the intake of the shared inbox
-- ARGV: token, lease ms, intake TTL ms, most messages, most bytes in all, most bytes of one message, a new batch ID,
--       dead length, newest version that the worker reads, most dead letters a minute (0: no limit)
-- Returns one of {'taken', batch ID, message …}; {'empty'}; {'again'} if every message checked became a dead letter;
--   {'other'} if another worker has the lease.
local now = now_ms()
-- A lease that ends later was not written by a worker.
local LONGEST_LEASE_MS = 60000
local leader = redis.call('HMGET', KEYS[5], 'token', 'until_ms', 'reads')
if leader[1] ~= ARGV[1] then
  local version, token = string.match(leader[3] or '', '^(%d+) (.*)$')
  local reads = token == leader[1] and tonumber(version) or 0
  local until_ms = number(leader[2])
  local alive = leader[1] and until_ms > now and until_ms <= now + LONGEST_LEASE_MS
  if KEYS[3] ~= KEYS[5] or (alive and reads >= tonumber(ARGV[9])) then return {'other'} end
end
redis.call('HSET', KEYS[5], 'token', ARGV[1], 'until_ms', int(now + ARGV[2]), 'reads', ARGV[9] .. ' ' .. ARGV[1])

local messages, bytes, checked = {}, 0, 0
local function add(message)
  checked = checked + 1
  bytes = bytes + #message
  if #message <= tonumber(ARGV[6]) then
    messages[#messages + 1] = message
    return true
  end
  local note = 'the message has ' .. #message .. ' bytes; the limit is ' .. ARGV[6]
  bury_message(KEYS[4], ARGV[8], KEYS[3], ARGV[10], note, string.sub(message, 1, 1000))
end
local function is_enough()
  return checked >= tonumber(ARGV[4]) or bytes >= tonumber(ARGV[5])
end

local before = redis.call('LLEN', KEYS[2])
if before > 0 then
  local at = 0
  while at < before and not is_enough() do
    local message = redis.call('LINDEX', KEYS[2], at)
    if add(message) then
      at = at + 1
    else
      redis.call('LREM', KEYS[2], 1, message)
      before = before - 1
    end
  end
  if #messages == 0 then return {'again'} end
  local batch = redis.call('HGET', KEYS[3], 'batch')
  if not is_batch_id(batch) then batch = ARGV[7] end
  redis.call('HSET', KEYS[3], 'batch', batch)
  redis.call('PERSIST', KEYS[3])
  return {'taken', batch, unpack(messages)}
end
while not is_enough() do
  local message = redis.call('LPOP', KEYS[1])
  if not message then break end
  add(message)
end
if #messages == 0 then
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
  return {checked > 0 and 'again' or 'empty'}
end
redis.call('RPUSH', KEYS[2], unpack(messages))
redis.call('HSET', KEYS[3], 'batch', ARGV[7])
redis.call('PERSIST', KEYS[3])
return {'taken', ARGV[7], unpack(messages)}
