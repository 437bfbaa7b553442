-- Deletes a key.
return redis.call('DEL', KEYS[1])
