redis.call('ZREM', KEYS[3], ARGV[1], '!' .. ARGV[1], '~' .. ARGV[1])
return redis.call('DEL', ARGV[1])
