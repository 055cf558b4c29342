-- Moves values whose type conflicts with their key to the dead letters, and counters beyond any value that fetchfleet
-- writes. A dead-letter key of another type is deleted.
-- Called by jobs/scripts/repair.py, quarantine.
-- KEYS: dead, then the keys to check
-- ARGV: dead length, bytes of a string to keep, then for each key to check its kind: a type, or counter
-- Returns {key, type found, kind} for each value that was moved.
local moved = {}
local function move(key, kind, to_dead_letters)
  local found = conflicting_type(kind, key)
  if not found and kind == 'counter' and is_absurd(tonumber(redis.call('GET', key) or 0)) then found = 'string' end
  if not found then return end
  local entry = found == 'string' and string.sub(redis.call('GET', key), 1, tonumber(ARGV[2])) or ''
  if to_dead_letters then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'door', 'key', 'reason', 'invalid',
      'note', key .. ' was a ' .. found .. ', not a ' .. kind, 'element', entry)
  end
  redis.call('UNLINK', key)
  moved[#moved + 1] = {key, found, kind}
end

move(KEYS[1], 'stream', false)
for i = 2, #KEYS do move(KEYS[i], ARGV[i + 1], true) end
return moved
