if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.pcall('HDEL', KEYS[2], 'owner', 'since', 'metadata')
return 1
