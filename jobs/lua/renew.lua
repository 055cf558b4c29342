-- Prolongs the leases of many lanes in one call.
-- Called by jobs/scripts/lanes.py, renew.
-- KEYS: attention, lanes
-- ARGV: lease ms, then for each lane: name, token
-- Returns now, then 1 or 0 for each lane: 0 when it is no longer this owner's.
local now = now_ms()
local reply = {now}
for i = 2, #KEYS do
  local name, token = ARGV[2 * i - 2], ARGV[2 * i - 1]
  local lane = redis.pcall('HMGET', KEYS[i], 'state', 'token') -- a foreign thing there is this lane's trouble alone
  local held = lane[1] == 'held' and lane[2] == token
  if held then redis.call('ZADD', KEYS[1], int(now + ARGV[1]), name) end
  reply[#reply + 1] = held and 1 or 0
end
return reply
