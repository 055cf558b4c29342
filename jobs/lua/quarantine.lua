-- What something else than us has put at our keys goes to the dead letters and out of the way. A stream of
-- dead letters that is none is dropped.
-- Called by jobs/scripts/repair.py, quarantine.
-- KEYS: dead, then the keys to look at
-- ARGV: dead length, how much of a string is kept, then for each key to look at its kind: a type, or counter
-- Returns {key, type found, kind} for each that was foreign.
local moved = {}
local function move(key, kind, bury)
  local found = foreign(kind, key)
  if not found then return end
  local element = found == 'string' and string.sub(redis.call('GET', key), 1, tonumber(ARGV[2])) or ''
  if bury then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'door', 'key', 'reason', 'invalid',
      'note', key .. ' was a ' .. found .. ', not a ' .. kind, 'element', element)
  end
  redis.call('UNLINK', key)
  moved[#moved + 1] = {key, found, kind}
end

move(KEYS[1], 'stream', false)
for i = 2, #KEYS do move(KEYS[i], ARGV[i + 1], true) end
return moved
