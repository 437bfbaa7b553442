-- Returns the gateways whose last heartbeat is at most ARGV[1] ms old.
return redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%d', now - tonumber(ARGV[1])), '+inf')
