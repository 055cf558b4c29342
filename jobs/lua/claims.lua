-- Lists the claimed entries of a held lane, so that its owner can find orphaned claims.
-- Called by jobs/scripts/lanes.py, claims.
-- KEYS: lane, claimed
-- ARGV: token
-- Returns {1, serialized entry …}; {} if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local reply = {1}
for _, entry in ipairs(redis.call('HVALS', KEYS[2])) do reply[#reply + 1] = entry end
return reply
