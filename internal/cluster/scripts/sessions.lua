-- Returns the sessions at a key. ARGV: lease, believed, the alive gateways.
local alive = {}
for i = 3, #ARGV do alive[ARGV[i]] = true end
return (others(redis.call('HGETALL', KEYS[1]), '', alive, tonumber(ARGV[1]), tonumber(ARGV[2])))
