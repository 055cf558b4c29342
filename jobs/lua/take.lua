-- scheduled → held: gives the lane to a worker, under a new token and a lease.
-- Called by jobs/scripts/lanes.py, take_call.
-- KEYS: lane, claimed, attention, serial, workers, its cancelled batches, the policy's version
-- ARGV: lane name, generation ('' for whichever it is), owner, lease ms, lanes that the owner holds already,
--       after how many ms without a sign of life a worker is dead,
--       within how many ms a lane needs attention that is held or due: those that cool down are nobody's share
-- Returns {'taken', token, now, gate, policy version, {cancelled batch …}, element …}: the elements are what a dead owner had
-- claimed; {'early', ms until due}; {'enough'} when the owner has its share of the lanes, so that another
-- worker should have this one (-1 lanes held: it takes it all the same); or {'stale'} when this hand-off is no longer the lane's current one.
local EARLY_ALLOWED_MS = 50
local lane = redis.call('HMGET', KEYS[1], 'state', 'generation', 'due_ms', 'gate')
if lane[1] ~= 'scheduled' or (ARGV[2] ~= '' and lane[2] ~= ARGV[2]) then return {'stale'} end
local now = now_ms()
local early = number(lane[3]) - now
if early > EARLY_ALLOWED_MS then return {'early', early} end

local workers = math.max(1, redis.call('ZCOUNT', KEYS[5], int(now - ARGV[6]), '+inf'))
local busy = redis.call('ZCOUNT', KEYS[3], '-inf', int(now + ARGV[7]))
if tonumber(ARGV[5]) >= math.ceil(busy / workers) then return {'enough'} end

local policy_version, cancelled = redis.call('GET', KEYS[7]) or '', redis.call('SMEMBERS', KEYS[6])
local orphans = redis.call('HVALS', KEYS[2])
local token = next_serial(KEYS[4])
redis.call('HSET', KEYS[1], 'state', 'held', 'owner', ARGV[3], 'token', int(token))
redis.call('ZADD', KEYS[3], int(now + ARGV[4]), ARGV[1])
local reply = {'taken', token, now, lane[4] or '', policy_version, cancelled}
for _, element in ipairs(orphans) do reply[#reply + 1] = element end
return reply
