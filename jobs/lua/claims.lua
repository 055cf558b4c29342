-- What is claimed in a held lane: its owner looks whether it knows of all of it.
-- Called by jobs/scripts/lanes.py, claims.
-- KEYS: lane, claimed
-- ARGV: token
-- Returns {1, element …}; {} to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local reply = {1}
for _, element in ipairs(redis.call('HVALS', KEYS[2])) do reply[#reply + 1] = element end
return reply
