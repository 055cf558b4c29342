-- Lists the jobs of arq's queue that may run now. It removes members that arq can neither run nor drop: an ID that is
-- not text, a member without a job. It repairs values that would end arq's loop, and replaces a job that is too large
-- by one that is refused.
-- Called by jobs/scripts/sweep.py, due_jobs.
-- KEYS: queue
-- ARGV: highest score, most jobs to list, most members to check, most bytes of an ID, most bytes of a job, most tries,
--       longest time for which a job is in progress (ms); prefixes of the keys of a job, its progress and its tries;
--       the arq function that refuses a job
-- Returns {job IDs, number of members checked, number removed, the beginning of the first one removed or ''}.
must_be('zset', KEYS[1])
local most_listed, most_checked, longest_id, largest = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local job_prefix, progress_prefix, tries_prefix = ARGV[8], ARGV[9], ARGV[10]

local function refuse(job_key, bytes)
  local note = 'the job has ' .. bytes .. ' bytes; the limit is ' .. ARGV[5]
  local found = string.gsub(redis.call('GETRANGE', job_key, 0, 199), '[^\32-\126]', '?')
  local job = '{"f":"' .. ARGV[11] .. '","a":["' .. note .. '",' .. cjson.encode(found) .. '],"k":{},"et":0,"t":null}'
  redis.call('SET', job_key, job, 'KEEPTTL')
end

-- Returns whether the member has a job that arq can read.
local function has_job(id)
  if #id > longest_id or not is_text(id) then return false end
  local job_key = job_prefix .. id
  local bytes = redis.pcall('STRLEN', job_key)
  if type(bytes) ~= 'number' then
    redis.call('UNLINK', job_key)
    return false
  end
  if bytes > largest then refuse(job_key, bytes) end
  return bytes > 0
end

local function is_in_progress(id)
  local key = progress_prefix .. id
  if redis.call('EXISTS', key) == 0 then return false end
  redis.call('PEXPIRE', key, ARGV[7], 'LT')
  return true
end

local function check_tries(id)
  local key = tries_prefix .. id
  local found = redis.pcall('GET', key)
  if not found then return end
  local tries = type(found) == 'string' and string.find(found, '^%d+$') and tonumber(found)
  if not tries or tries > tonumber(ARGV[6]) then redis.call('UNLINK', key) end
end

local jobs, foreign = {}, {}
local page = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'WITHSCORES', 'LIMIT', 0, most_checked)
local checked = 0
for i = 1, #page, 2 do
  if #jobs == most_listed then break end
  local id = page[i]
  checked = checked + 1
  if not has_job(id) then
    foreign[#foreign + 1] = id
  elseif not is_in_progress(id) then
    -- arq skips a job with the score 0, and an infinite score ends its loop. Every clock has passed 1.
    if tonumber(page[i + 1]) < 1 then redis.call('ZADD', KEYS[1], 1, id) end
    check_tries(id)
    jobs[#jobs + 1] = id
  end
end
in_slices(#foreign, function(first, last) redis.call('ZREM', KEYS[1], unpack(foreign, first, last)) end)
return {jobs, checked, #foreign, string.sub(foreign[1] or '', 1, SHOWN_CHARS)}
