-- Defers messages: moves those that need a newer worker from the taken list to a bounded list. Messages that do not fit
-- become dead letters. No message is deferred if a newer worker has enqueued part of the batch: a batch is not split.
-- Called by jobs/scripts/inbox.py, inbox_defer.
-- KEYS: taken, newer, intake, dead, the intake of the shared inbox, the batch that the taken messages become
-- ARGV: token, most messages and bytes in the list, dead length, most dead letters a minute (0: no limit), bytes of a
--       message that a dead letter keeps; for each message: its version, message
-- Returns {'deferred', number that did not fit}, {'begun'} if the batch is partly enqueued, or {'other'} if another
-- worker has the lease.
if redis.call('HGET', KEYS[5], 'token') ~= ARGV[1] then return {'other'} end
if redis.call('EXISTS', KEYS[6]) == 1 then return {'begun'} end
local most, most_bytes = tonumber(ARGV[2]), tonumber(ARGV[3])
local length, bytes = redis.call('LLEN', KEYS[2]), number(redis.call('HGET', KEYS[3], 'newer_bytes'))
if length == 0 then bytes = 0 end
if length > 0 and length <= most and (bytes <= 0 or bytes > most_bytes) then -- written by another program
  bytes = 0
  in_slices(length, function(first, last)
    for _, text in ipairs(redis.call('LRANGE', KEYS[2], first - 1, last - 1)) do bytes = bytes + #text end
  end)
end
local left_out = 0
for i = 7, #ARGV, 2 do
  local text = ARGV[i] .. ' ' .. ARGV[i + 1]
  if redis.call('LREM', KEYS[1], 1, ARGV[i + 1]) == 1 then
    if length < most and bytes + #text <= most_bytes then
      redis.call('RPUSH', KEYS[2], text)
      length, bytes = length + 1, bytes + #text
    else
      left_out = left_out + 1
      local note = 'needs version ' .. ARGV[i] .. ', and the list of messages for newer workers is full'
      bury_message(KEYS[4], ARGV[4], KEYS[3], ARGV[5], note, string.sub(ARGV[i + 1], 1, tonumber(ARGV[6])))
    end
  end
end
redis.call('HSET', KEYS[3], 'newer_bytes', int(bytes))
return {'deferred', left_out}
