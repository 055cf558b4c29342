-- Describes the newest results of a batch, for its rate. Changes nothing.
-- Called by jobs/scripts/views.py, recent_results.
-- KEYS: results of the batch
-- ARGV: most results to read, ms: how old the oldest of them may be
-- Returns {number of results in the stream, number of those read, Unix ms of the oldest of them or 0, Unix ms now}.
local now = now_ms()
local length = redis.pcall('XLEN', KEYS[1])
if type(length) ~= 'number' then return {0, 0, 0, now} end
local newest = redis.call('XREVRANGE', KEYS[1], '+', int(now - ARGV[2]), 'COUNT', ARGV[1])
local oldest = #newest > 0 and tonumber(string.match(newest[#newest][1], '^%d+')) or 0
return {length, #newest, oldest, now}
