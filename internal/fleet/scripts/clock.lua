-- Returns the time of the Redis that has the commands, in milliseconds. KEYS[1]: the stream.
local now = redis.call('TIME')
return now[1] * 1000 + math.floor(now[2] / 1000)
