-- Lists the claimed entries of a held lane, so that its owner can find orphaned claims.
-- Called by jobs/scripts/lanes.py, claims.
-- KEYS: lane, claimed
-- ARGV: token
-- Returns {serialized entries, their values in records (records_of), number of elements that were too large and became
-- dead letters}; {} if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local entries, too_large = claimed_entries(KEYS[2], KEYS[1])
return {entries, records_of(entries), too_large}
