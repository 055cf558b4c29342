-- Renews the leases of many lanes.
-- Called by jobs/scripts/lanes.py, renew.
-- KEYS: attention, lanes
-- ARGV: lease ms, then for each lane: name, token
-- Returns now, then for each lane 1, or 0 if its token is stale.
local now = now_ms()
local reply = {now}
for i = 2, #KEYS do
  local name, token = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local lane = redis.pcall('HMGET', KEYS[i], 'state', 'token') -- a conflicting key fails this lane only
  local held = lane[1] == 'held' and lane[2] == token
  if held then redis.call('ZADD', KEYS[1], int(now + ARGV[1]), name) end
  reply[#reply + 1] = held and 1 or 0
end
return reply
