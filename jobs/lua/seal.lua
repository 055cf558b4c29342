-- Seals a batch: it accepts no more fetches.
-- Called by jobs/scripts/batches.py, seal.
-- KEYS: batch, its lanes, its digests, batches
-- ARGV: batch id, finished TTL ms, unfinished TTL ms, the URL of the batch's webhook, '' if none
for i, kind in ipairs({'hash', 'set', 'list', 'zset'}) do must_be(kind, KEYS[i]) end
if ARGV[4] ~= '' then must_be('zset', WEBHOOKS_KEY) end
redis.call('HSETNX', KEYS[1], 'total', 0)
list_if_new(KEYS[1], KEYS[4], ARGV[1], now_ms())
set_webhook(KEYS[1], ARGV[1], ARGV[4], now_ms())
local ttl = seal(KEYS[1], ARGV[2], ARGV[3])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ttl) end
return 1
