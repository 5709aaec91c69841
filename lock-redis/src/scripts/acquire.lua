local PRESENCE, GRACE, LIFE = 6000, 300, 30000
local MARK, PRESENT = 8e15, 8.5e15
local LAST, AGREE = 9007199254740991, 500000
local queue, entry, mode = KEYS[3], ARGV[6] or '', ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- What an entry's key holds, if its client is alive. Its presence is not the key's TTL: a renewal would wake
-- whoever sleeps on the key.
local function arrival_of(entry)
  local present = redis.call('ZSCORE', queue, '~' .. entry)
  return present and present - PRESENT > now / 1000 and redis.pcall('GET', entry)
end

local function remove(entry)
  redis.call('ZREM', queue, entry, '!' .. entry, '~' .. entry)
  redis.pcall('DEL', entry)
end

-- The first entry whose client is alive, taken out of the queue. The keys of entries are not among `KEYS`: on
-- their way to another server they cannot be read, and count as there.
local first, holder = {}, nil
while queue and mode ~= 'pass' do
  first = redis.call('ZPOPMIN', queue)
  if not first[1] or first[1] == entry then break end
  if tonumber(first[2]) < MARK then
    if arrival_of(first[1]) then
      if holder == nil then holder = redis.pcall('GET', KEYS[1]) end
      if holder then break end
      -- The lock is free and it is this one's turn: passed over if it does not come.
      local mark = '!' .. first[1]
      local since = redis.call('ZSCORE', queue, mark)
      if not since then redis.call('ZADD', queue, string.format('%.0f', MARK + now / 1000), mark) end
      if not since or MARK + now / 1000 - since < GRACE then break end
    end
    remove(first[1])
  end
end
local mine = first[1] and first[1] == entry
local blocked = first[1] and not mine

local fresh = not blocked and mode ~= 'enter' and redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if fresh then
  if queue and entry ~= '' and mode ~= 'keep' then remove(entry) end
else
  if first[1] then
    redis.call('ZADD', queue, first[2], first[1])
    redis.call('PEXPIRE', queue, PRESENCE)
  end
  if not blocked then holder = redis.pcall('GET', KEYS[1]) end
  if type(holder) == 'table' then
    local kind = redis.call('TYPE', KEYS[1]).ok
    if kind == 'string' then return holder end
    return redis.error_reply('NOTALOCK the key holds a ' .. kind)
  end
  if holder ~= ARGV[1] or mode == 'enter' then
    local before, arrival = false, false
    if queue and (mode == 'wait' or mode == 'renew' or mode == 'enter') then
      local added = redis.call('ZADD', queue, 'NX', string.format('%.0f', now), entry)
      if added == 1 or mode ~= 'wait' then
        redis.call('ZADD', queue, string.format('%.0f', PRESENT + PRESENCE + now / 1000), '~' .. entry)
        local left = added == 0 and redis.pcall('PTTL', entry)
        if type(left) ~= 'number' or left < LIFE / 2 then
          redis.pcall('SET', entry, redis.call('ZSCORE', queue, entry), 'PX', LIFE)
        end
      end
      redis.call('PEXPIRE', queue, PRESENCE)
      if mine then redis.call('ZREM', queue, '!' .. entry) end
      local rank = blocked and redis.call('ZRANK', queue, entry) or 0
      while rank > 0 do
        rank = rank - 1
        before = redis.call('ZRANGE', queue, rank, rank)[1]
        arrival = arrival_of(before)
        if arrival then break end
        remove(before)
        before = false
      end
    end
    -- Whoever comes next after the first sees whether that one takes a free lock.
    local left = (not before or before == first[1]) and GRACE or -2
    if holder then left = before and -2 or redis.call('PTTL', KEYS[1]) end
    return {0, left, holder or '', before or '', type(arrival) == 'string' and arrival or ''}
  end
end

local token, number = false, nil
if not fresh then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  local last = redis.call('HMGET', KEYS[2], 'owner', 'token')
  if last[1] == ARGV[1] then token = last[2] end
end
if not token then
  number = redis.pcall('HINCRBY', KEYS[2], 'token', 1)
  if type(number) == 'table' or number > LAST then
    -- Beyond it numbers are not exact here, and a token would be handed out twice.
    redis.call('DEL', KEYS[1])
    if type(number) == 'number' then
      redis.call('HINCRBY', KEYS[2], 'token', -1)
    elseif not string.find(number.err, 'integer') and not string.find(number.err, 'overflow') then
      return number
    end
    return redis.error_reply('NOTOKENS the counter is at its end or holds no number')
  end
  -- A client's clock counts as far as it agrees with this server's.
  local floor = math.min(math.max(tonumber(ARGV[5]) or now, now - AGREE), now + AGREE)
  token = string.format('%.0f', math.max(number, floor))
  redis.call('HSET', KEYS[2], 'token', token, 'owner', ARGV[1], 'since', string.format('%.0f', now), 'metadata', ARGV[4])
end
local ahead = math.max(0, math.ceil((token - now) / 1000))
redis.call('PEXPIRE', KEYS[2], string.format('%.0f', ARGV[3] + ahead))
return {1, token}
