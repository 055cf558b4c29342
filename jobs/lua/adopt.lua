-- Rewrites claimed entries whose counters the new owner has updated.
-- Called by jobs/scripts/lanes.py, adopt.
-- KEYS: lane, claimed
-- ARGV: token, serialized entries
-- Returns 1, or 0 if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return 0 end
for i = 2, #ARGV do
  local id = id_of(ARGV[i])
  if redis.call('HEXISTS', KEYS[2], id) == 1 then redis.call('HSET', KEYS[2], id, ARGV[i]) end
end
return 1
