local fresh = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if not fresh then
  local holder = redis.pcall('GET', KEYS[1])
  if type(holder) == 'table' then
    local kind = redis.call('TYPE', KEYS[1]).ok
    if kind == 'string' then return holder end
    return redis.error_reply('NOTALOCK the key holds a ' .. kind)
  end
  if holder ~= ARGV[1] then return {0, redis.call('PTTL', KEYS[1]), holder or ''} end
end
local token = false
if not fresh then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  local last = redis.call('HMGET', KEYS[2], 'owner', 'token')
  if last[1] == ARGV[1] then token = last[2] end
end
if not token then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local number = math.max(redis.call('HINCRBY', KEYS[2], 'token', 1), tonumber(ARGV[6]) or now)
  token = string.format('%.0f', number)
  redis.call('HSET', KEYS[2], 'token', token, 'owner', ARGV[1], 'since', string.format('%.0f', now), 'metadata', ARGV[4])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if ARGV[5] == '1' then redis.call('EXISTS', KEYS[1]) end
return {1, token}
