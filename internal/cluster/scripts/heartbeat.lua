-- Records that the gateway ARGV[1] is alive, for ARGV[2] ms. Returns whether it was thought
-- to be, and the other gateways that are.
local self, lease = ARGV[1], tonumber(ARGV[2])
local last = redis.call('ZSCORE', KEYS[1], self)
redis.call('ZADD', KEYS[1], now, self)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%d', now - lease))
redis.call('PEXPIRE', KEYS[1], 10 * lease)
local reply = {(last and now - tonumber(last) < lease) and 1 or 0}
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, 999)) do
	if other ~= self then reply[#reply+1] = other end
end
return reply
