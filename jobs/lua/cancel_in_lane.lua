-- Asks a lane's owner, who is found or woken, to end all fetches of a cancelled batch.
-- KEYS: lane, its cancelled batches, cancels, attention, serial
-- ARGV: lane name, batch id, unfinished TTL ms, grace ms
-- Returns {generation, 0} when the lane must be woken, {} when not.
local lane = redis.call('HMGET', KEYS[1], 'state', 'due_ms')
if lane[1] ~= 'held' and lane[1] ~= 'scheduled' then return {} end
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('INCR', KEYS[3])
local now = now_ms()
if lane[1] == 'held' or tonumber(lane[2]) <= now then return {} end
return {schedule(KEYS[1], KEYS[4], KEYS[5], ARGV[1], now, tonumber(ARGV[4])), 0}
