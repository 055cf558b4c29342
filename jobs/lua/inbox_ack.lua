-- Drops the taken messages, which are enqueued now, and adds the refused ones to the dead letters.
-- It frees memory before it adds, because Redis may be out of memory.
-- Called by jobs/scripts/inbox.py, inbox_ack.
-- KEYS: taken, intake, dead
-- ARGV: token, intake TTL ms, dead length, then for each refused message: note, message
-- Returns 1, or 0 if another worker empties the inbox.
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], 'batch')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
for i = 4, #ARGV, 2 do bury_message(KEYS[3], ARGV[3], ARGV[i], ARGV[i + 1]) end
return 1
