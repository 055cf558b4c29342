-- Schedules a lane again if its owner's lease has lapsed or its notification was lost. Run by the sweep.
-- Called by jobs/scripts/lanes.py, reclaim_lanes.
-- KEYS: lane, attention, serial, claimed, later, returned, high, normal, low, deaths
-- ARGV: lane name, grace ms, ms for which a death counts
-- Returns {generation, the worker that lost the lane or ''}; {} if the lane needs nothing.
local OWNER_CHARS = 300
local now = now_ms()
local due = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]))
if not due or due > now then return {} end
local lane = redis.call('HMGET', KEYS[1], 'state', 'owner')
-- Another program may have overwritten the state: an idle lane has no fetches.
if lane[1] ~= 'held' and lane[1] ~= 'scheduled' and count_fetches(4) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return {}
end
local lost = lane[1] == 'held' and string.sub(lane[2] or '', 1, OWNER_CHARS) or ''
if lost ~= '' then redis.call('ZREMRANGEBYSCORE', KEYS[10], '-inf', int(now - ARGV[3])) end
local generation = schedule(KEYS[1], KEYS[2], KEYS[3], ARGV[1], now, tonumber(ARGV[2]))
if lost ~= '' then
  redis.call('HSET', KEYS[1], 'last_owner', lost)
  redis.call('ZADD', KEYS[10], int(now), lost)
  redis.call('PEXPIRE', KEYS[10], ARGV[3])
end
return {generation, lost}
