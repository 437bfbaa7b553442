-- Removes the gateway ARGV[1] from those that are alive.
return redis.call('ZREM', KEYS[1], ARGV[1])
