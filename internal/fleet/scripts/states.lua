-- Adds the states of addresses that the caller knows and this Redis has lost, and returns all.
-- An address that was resumed has a state too, so a missing one is always a loss. KEYS[1]: the
-- hash. ARGV: the most fields, and the fields that the caller knows with their values.
for i = 2, #ARGV, 2 do
  if not redis.call('HGET', KEYS[1], ARGV[i]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) then
  return redis.error_reply('too many states of addresses')
end
return redis.call('HGETALL', KEYS[1])
