-- Cancels a batch: nothing more may be submitted to it, and it counts as whole. One that has ended stays as it is.
-- Called by jobs/scripts/batches.py, cancel.
-- KEYS: batch, its lanes, its digests
-- ARGV: finished TTL ms, unfinished TTL ms
-- Returns the lanes where its fetches are, nil if there is no such batch.
for i, kind in ipairs({'hash', 'set', 'list'}) do must_be(kind, KEYS[i]) end
if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
if has_ended(KEYS[1]) then return {} end
redis.call('HSETNX', KEYS[1], 'cancel_ms', int(now_ms()))
redis.call('HSETNX', KEYS[1], 'total', 0)
local ttl = seal(KEYS[1], ARGV[1], ARGV[2])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl) end
return redis.call('SMEMBERS', KEYS[2])
