-- Notes a successful login from the network ARGV[1]. The 32 latest networks are kept, for
-- ARGV[2] ms.
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -33)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
