-- Rewrites claimed elements, whose ledgers the new owner has brought up to date.
-- Called by jobs/scripts/lanes.py, adopt.
-- KEYS: lane, claimed
-- ARGV: token, elements
-- Returns 1, or 0 to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return 0 end
for i = 2, #ARGV do
  local id = id_of(ARGV[i])
  if redis.call('HEXISTS', KEYS[2], id) == 1 then redis.call('HSET', KEYS[2], id, ARGV[i]) end
end
return 1
