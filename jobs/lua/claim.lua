-- Moves fetches from the queues of a held lane to its claimed hash.
-- Called by jobs/scripts/lanes.py, claim_call.
-- KEYS: lane, claimed, later, returned, high, normal, low
-- ARGV: token, most fetches to claim
-- Returns {now, serialized entries, number of fetches that still wait, ms until the next retry or -1, the entries' values
-- in records (records_of), number of elements that were too large and became dead letters}; {} if the token is stale.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local claim = claim_waiting(KEYS, tonumber(ARGV[2]), now_ms())
claim[5] = records_of(claim[2])
return claim
