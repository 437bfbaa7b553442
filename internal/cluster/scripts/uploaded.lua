-- Returns a sum of bytes.
return tonumber(redis.call('GET', KEYS[1])) or 0
