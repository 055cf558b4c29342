-- Moves messages from the inbox to the taken list, under the id of the batch that they become.
-- Messages that are not acknowledged yet are returned again, with the same batch id.
-- Called by jobs/scripts/inbox.py, inbox_take.
-- KEYS: inbox, taken, intake, dead
-- ARGV: token, lease ms, intake TTL ms, the most messages, the most bytes in all, the most bytes of one message,
--       a new batch id, dead length
-- Returns {'taken', batch id, message …}, {'empty'}, or {'other'} if another worker empties the inbox.
local now = now_ms()
local intake = redis.call('HMGET', KEYS[3], 'token', 'until_ms', 'batch')
if intake[1] and intake[1] ~= ARGV[1] and number(intake[2]) > now then return {'other'} end
redis.call('HSET', KEYS[3], 'token', ARGV[1], 'until_ms', int(now + ARGV[2]))
local before = redis.call('LRANGE', KEYS[2], 0, -1)
if #before > 0 then
  local batch = is_batch_id(intake[3]) and intake[3] or ARGV[7]
  redis.call('HSET', KEYS[3], 'batch', batch)
  return {'taken', batch, unpack(before)}
end
redis.call('PEXPIRE', KEYS[3], ARGV[3])

local function bury(message)
  local note = 'the message has ' .. #message .. ' bytes, ' .. ARGV[6] .. ' are the most'
  bury_message(KEYS[4], ARGV[8], note, string.sub(message, 1, 1000))
end

local messages, bytes = {}, 0
while #messages < tonumber(ARGV[4]) and bytes < tonumber(ARGV[5]) do
  local message = redis.call('LPOP', KEYS[1])
  if not message then break end
  if #message > tonumber(ARGV[6]) then
    bury(message)
  else
    messages[#messages + 1] = message
    bytes = bytes + #message
  end
end
if #messages == 0 then return {'empty'} end
redis.call('RPUSH', KEYS[2], unpack(messages))
redis.call('HSET', KEYS[3], 'batch', ARGV[7])
redis.call('PERSIST', KEYS[3])
return {'taken', ARGV[7], unpack(messages)}
