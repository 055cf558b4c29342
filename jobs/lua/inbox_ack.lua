-- Removes enqueued and refused messages from the taken list, adds the refused ones to the dead letters, and writes
-- receipts. It frees memory before it adds data, because Redis may be out of memory.
-- Called by jobs/scripts/inbox.py, inbox_ack.
-- KEYS: taken, intake, dead, the intake of the shared inbox, a key for each receipt
-- ARGV: token, intake TTL ms, dead length, most dead letters a minute (0: no limit), receipt TTL ms, number of messages
--       to remove, '1' if they follow, because the taken list has other messages too; the receipts; the messages; for
--       each refused message: note, message
-- Returns {'done', number of refused messages that are not dead letters}, {'more'} if the taken list has other messages
-- and the messages did not follow, or {'other'} if another worker has the lease.
if redis.call('HGET', KEYS[4], 'token') ~= ARGV[1] then return {'other'} end
local count, at = tonumber(ARGV[6]), 8 + #KEYS - 4
if ARGV[7] == '1' then
  for i = at, at + count - 1 do redis.call('LREM', KEYS[1], 1, ARGV[i]) end
  at = at + count
elseif redis.call('LLEN', KEYS[1]) > count then
  return {'more'}
else
  redis.call('DEL', KEYS[1])
end
redis.call('HDEL', KEYS[2], 'batch')
for i = 5, #KEYS do redis.call('SET', KEYS[i], ARGV[3 + i], 'PX', ARGV[5]) end
local left_out = 0
for i = at, #ARGV, 2 do
  if not bury_message(KEYS[3], ARGV[3], KEYS[2], ARGV[4], ARGV[i], ARGV[i + 1]) then left_out = left_out + 1 end
end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return {'done', left_out}
