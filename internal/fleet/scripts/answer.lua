-- Adds an answer. KEYS[1]: the list. ARGV: how long it lasts in milliseconds, and the answer.
redis.call('RPUSH', KEYS[1], ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
