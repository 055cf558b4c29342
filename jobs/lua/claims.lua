-- Lists the claimed entries of a held lane, so that its owner can find orphaned claims.
-- Called by jobs/scripts/lanes.py, claims.
-- KEYS: lane, claimed
-- ARGV: token
-- Returns {serialized entries, what the record of each one's batch says}; {} if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local entries = claimed_entries(KEYS[2])
return {entries, records_of(entries)}
