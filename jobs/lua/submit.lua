-- Appends one chunk of a batch to its lanes; all of it or nothing. Safe to send again: a chunk that
-- was taken before changes nothing.
-- KEYS: batch, attention, serial, then for each group of fetches: lane, list
-- ARGV: chunk number (from 1), fetches in it, batch TTL ms, grace ms, then for each group:
--       lane name, number of elements, the elements, whose heads hold the time allowed
-- Returns for each lane to wake: its name, generation, ms until due.
local chunk, fetches, ttl, grace = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
if chunk <= (tonumber(redis.call('HGET', KEYS[1], 'chunks')) or 0) then return {} end

local now = now_ms()

-- Appends count elements from ARGV[from] on; returns the earliest of their deadlines.
local function append(list_key, from, count)
  local elements, earliest = {}, math.huge
  for i = 1, count do
    local element = ARGV[from + i - 1]
    local deadline = now + deadline_of(element)
    elements[i] = id_of(element) .. string.format('%013.0f', deadline) .. string.sub(element, HEAD_CHARS + 1)
    earliest = math.min(earliest, deadline)
  end
  redis.call('RPUSH', list_key, unpack(elements))
  return earliest
end

local wakes, at = {}, 5
for key = 4, #KEYS, 2 do
  local name, count = ARGV[at], tonumber(ARGV[at + 1])
  local earliest = append(KEYS[key + 1], at + 2, count)
  local wake = wake_for_new(KEYS[key], KEYS[2], KEYS[3], name, earliest, now, grace)
  if wake then wakes[#wakes + 1] = {name, wake[1], wake[2]} end
  at = at + 2 + count
end

redis.call('HSETNX', KEYS[1], 'created_ms', int(now))
redis.call('HSET', KEYS[1], 'chunks', chunk)
redis.call('HINCRBY', KEYS[1], 'total', fetches)
redis.call('PEXPIRE', KEYS[1], ttl)
return wakes
