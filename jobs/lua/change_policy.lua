-- Changes the policy tables set at run time, unless they have changed since the caller read them.
-- Called by jobs/scripts/host_control.py, change_policy.
-- KEYS: policy, the policy's version
-- ARGV: the version that the caller has read ('' for none), then for each field to change: field, value ('' to
--       remove it)
-- Returns 1, or 0 if the version has changed.
must_be('hash', KEYS[1])
must_be('counter', KEYS[2])
if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('INCRBY', KEYS[2], 1)
return 1
