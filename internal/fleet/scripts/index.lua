-- Enters a gateway in the index of all, by the clock of this Redis, and returns that clock in
-- milliseconds. KEYS[1]: the index. ARGV: the gateway, how long the index keeps one that sends no
-- heartbeat in milliseconds, and how many it keeps.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[3])
return now
