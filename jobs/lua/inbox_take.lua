-- Moves messages from an inbox to its taken list, under the id of the batch that they become.
-- Messages that are not acknowledged yet are returned again, with the same batch id.
-- The shared inbox is taken by the worker that leads: one that reads a newer version takes over at once. The named
-- ones are only for the worker that leads.
-- Called by jobs/scripts/inbox.py, inbox_take.
-- KEYS: inbox, taken, intake, dead, the intake of the shared inbox
-- ARGV: token, lease ms, intake TTL ms, the most messages, the most bytes in all, the most bytes of one message,
--       a new batch id, dead length, the newest version that the worker reads, the most dead letters a minute (0: no limit)
-- Returns one of {'taken', batch id, message …}; {'empty'}; {'again'} if all that was looked at is a dead letter now;
--   {'other'} if another worker empties the inboxes.
local now = now_ms()
-- No lease is longer: a time further ahead is not a worker's.
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

local messages, bytes, looked_at = {}, 0, 0
local function add(message)
  looked_at = looked_at + 1
  bytes = bytes + #message
  if #message <= tonumber(ARGV[6]) then
    messages[#messages + 1] = message
    return true
  end
  local note = 'the message has ' .. #message .. ' bytes, ' .. ARGV[6] .. ' are the most'
  bury_message(KEYS[4], ARGV[8], KEYS[3], ARGV[10], note, string.sub(message, 1, 1000))
end
local function is_enough()
  return looked_at >= tonumber(ARGV[4]) or bytes >= tonumber(ARGV[5])
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
  return {looked_at > 0 and 'again' or 'empty'}
end
redis.call('RPUSH', KEYS[2], unpack(messages))
redis.call('HSET', KEYS[3], 'batch', ARGV[7])
redis.call('PERSIST', KEYS[3])
return {'taken', ARGV[7], unpack(messages)}
