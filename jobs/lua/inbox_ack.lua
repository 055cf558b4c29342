-- The messages are enqueued; those that could not be are dead letters.
-- It frees before it adds: Redis may be out of memory.
-- Called by jobs/scripts/inbox.py, inbox_ack.
-- KEYS: taken, intake, dead
-- ARGV: token, intake TTL ms, dead length, then for each refused message: note, message
-- Returns 1, or 0 to a worker that no longer empties the inbox.
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HDEL', KEYS[2], 'batch')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
for i = 4, #ARGV, 2 do bury_message(KEYS[3], ARGV[3], ARGV[i], ARGV[i + 1]) end
return 1
