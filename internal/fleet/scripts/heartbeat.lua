-- Writes what a gateway says about itself. KEYS[1]: the gateway. ARGV: how long it lasts in
-- milliseconds, and fields with their values.
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
