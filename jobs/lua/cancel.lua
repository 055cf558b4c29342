-- Cancels a batch: it accepts no more fetches and counts as sealed. A batch that has ended does not change.
-- Called by jobs/scripts/batches.py, cancel.
-- KEYS: batch, its lanes, its digests
-- ARGV: finished TTL ms, unfinished TTL ms
-- Returns the lanes that may hold its fetches, nil if the batch does not exist.
for i, kind in ipairs({'hash', 'set', 'list'}) do must_be(kind, KEYS[i]) end
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
if has_ended(KEYS[1]) then return {} end
redis.call('HSETNX', KEYS[1], 'cancel_ms', int(now_ms()))
redis.call('HSETNX', KEYS[1], 'total', 0)
local ttl = seal(KEYS[1], ARGV[1], ARGV[2])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl) end
return redis.call('SMEMBERS', KEYS[2])
