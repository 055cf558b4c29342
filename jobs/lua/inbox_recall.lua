-- Moves deferred messages back to their inbox if the worker reads their version. The others move to the end of the list.
-- Called by jobs/scripts/inbox.py, inbox_recall.
-- KEYS: newer, inbox, intake, the intake of the shared inbox
-- ARGV: token, newest version that the worker reads, most messages and bytes to check
-- Returns {'checked', number checked, number deferred before}, or {'other'} if another worker has the lease.
if redis.call('HGET', KEYS[4], 'token') ~= ARGV[1] then return {'other'} end
local deferred = redis.call('LLEN', KEYS[1])
local checked, bytes, moved_bytes = 0, 0, 0
while checked < tonumber(ARGV[3]) and bytes < tonumber(ARGV[4]) do
  local text = redis.call('LPOP', KEYS[1])
  if not text then break end
  checked = checked + 1
  bytes = bytes + #text
  local version = string.match(text, '^(%d+) ')
  if version and tonumber(version) > tonumber(ARGV[2]) then
    redis.call('RPUSH', KEYS[1], text)
  else
    redis.call('RPUSH', KEYS[2], version and string.sub(text, #version + 2) or text)
    moved_bytes = moved_bytes + #text
  end
end
if moved_bytes > 0 then
  local left = number(redis.call('HGET', KEYS[3], 'newer_bytes')) - moved_bytes
  redis.call('HSET', KEYS[3], 'newer_bytes', int(math.max(0, left)))
end
return {'checked', checked, deferred}
