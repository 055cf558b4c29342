-- Replaces claimed entries with the versions whose counters the new owner has updated.
-- Called by jobs/scripts/lanes.py, adopt.
-- KEYS: lane, claimed, deaths
-- ARGV: token, the dead owner if one of the entries explains its death, else '', serialized entries
-- Returns 1, or 0 if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] ~= '' then redis.call('ZREM', KEYS[3], ARGV[2]) end
for i = 3, #ARGV do
  local id = id_of(ARGV[i])
  if redis.call('HEXISTS', KEYS[2], id) == 1 then redis.call('HSET', KEYS[2], id, ARGV[i]) end
end
return 1
