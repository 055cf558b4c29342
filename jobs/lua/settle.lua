-- Ends or postpones claimed fetches. Safe to send again: what is no longer claimed is passed over, so
-- that each fetch gets exactly one result.
-- KEYS: lane, claimed, later, dead, results of all batches, backlog, then for each batch: batch, results
-- ARGV: token, the gate's state ('' if unchanged), finished TTL ms, unfinished TTL ms, dead length,
--       lane name, '1' if results go to the stream of all batches too, then for each fetch its id and
--       'done', number of its batch (from 1), outcome, bytes, result
--       'again', ms from now, element
--       'dead', reason, note: a copy to the dead letters; 'done' or 'drop' follows
--       'drop'
-- Returns {now}; {} to a stale owner.
if not fenced(KEYS[1], ARGV[1]) then return {} end
local now = now_ms()
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'gate', ARGV[2]) end

local counts = {} -- batch number → outcome → how many, and bytes

local function finish(batch, outcome, bytes, result)
  local key = KEYS[5 + 2 * batch]
  redis.call('XADD', KEYS[6 + 2 * batch], '*', 'r', result)
  if ARGV[7] == '1' then redis.call('XADD', KEYS[5], '*', 'r', result) end
  local count = counts[key] or {done = 0, bytes = 0}
  count.done = count.done + 1
  count.bytes = count.bytes + tonumber(bytes)
  count[outcome] = (count[outcome] or 0) + 1
  counts[key] = count
end

local function bury(id, reason, note)
  local element = redis.call('HGET', KEYS[2], id)
  if not element then return end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', 'door', 'lane', 'reason', reason, 'note', note,
    'lane', ARGV[6], 'id', id, 'element', element)
end

-- Whether the fetch was still claimed; it no longer is. What is claimed just as it was to be postponed has
-- come back since: this settlement was sent before, and the next attempt is not its to take.
local function let_go(id, postponed)
  if postponed and redis.call('HGET', KEYS[2], id) == postponed then return false end
  return redis.call('HDEL', KEYS[2], id) == 1
end

local at = 8
while at <= #ARGV do
  local id, action = ARGV[at], ARGV[at + 1]
  if action == 'dead' then
    bury(id, ARGV[at + 2], ARGV[at + 3])
    at = at + 4
  else
    local mine = let_go(id, action == 'again' and ARGV[at + 3])
    if action == 'done' then
      if mine then finish(tonumber(ARGV[at + 2]), ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]) end
      at = at + 6
    elseif action == 'again' then
      if mine then redis.call('ZADD', KEYS[3], int(now + ARGV[at + 2]), ARGV[at + 3]) end
      at = at + 4
    else
      at = at + 2
    end
  end
end

local done = 0
for i = 7, #KEYS, 2 do
  local count = counts[KEYS[i]]
  if count then
    done = done + count.done
    for field, by in pairs(count) do
      if by > 0 then redis.call('HINCRBY', KEYS[i], field, int(by)) end
    end
    local ttl = has_ended(KEYS[i]) and ARGV[3] or ARGV[4]
    redis.call('PEXPIRE', KEYS[i], ttl)
    redis.call('PEXPIRE', KEYS[i + 1], ttl)
  end
end
count_open(KEYS[1], KEYS[6], -done)
return {now}
