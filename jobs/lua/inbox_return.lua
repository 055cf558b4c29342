-- Moves messages of an unsupported version from the taken messages back to the end of the inbox.
-- They stay if a newer worker that died has already enqueued part of the batch: a batch is not split.
-- Called by jobs/scripts/inbox.py, inbox_return.
-- KEYS: inbox, taken, intake, the batch that the taken messages become
-- ARGV: token, messages
-- Returns {'back', how many messages are in the inbox}, {'begun'} if they must stay, or {'other'} if another worker
-- empties the inbox.
if redis.call('HGET', KEYS[3], 'token') ~= ARGV[1] then return {'other'} end
if redis.call('EXISTS', KEYS[4]) == 1 then return {'begun'} end
for i = 2, #ARGV do
  if redis.call('LREM', KEYS[2], 1, ARGV[i]) == 1 then redis.call('RPUSH', KEYS[1], ARGV[i]) end
end
return {'back', redis.call('LLEN', KEYS[1])}
