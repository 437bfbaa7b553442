-- Sets and adds to the values of one gateway, all or none of the additions. ARGV: gateway,
-- lease, believed, number of alive gateways, their names (* for all); then for each key the
-- value to set first (-1: keep it), what to add, and the limit (0: none). Returns for each
-- key 0: done, 1: its limit is reached, 2: not added because another limit is reached,
-- 3: the key holds something else.
local self, lease, believed, at = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 5 + tonumber(ARGV[4])
local alive = {}
for i = 5, at - 1 do alive[ARGV[i]] = true end
local reply, mine, sum, full = {}, {}, {}, false
for k, key in ipairs(KEYS) do
	local set, add, limit = tonumber(ARGV[at]), tonumber(ARGV[at+1]), tonumber(ARGV[at+2])
	local all = redis.pcall('HGETALL', key)
	reply[k] = all.err and 3 or 0
	if not all.err then
		local n, dead = others(all, self, alive, lease, believed)
		for _, gateway in ipairs(dead) do redis.call('HDEL', key, gateway) end
		mine[k], sum[k] = set, n
		if set < 0 then
			mine[k] = 0
			for i = 1, #all, 2 do
				if all[i] == self then mine[k] = tonumber(string.match(all[i+1], '^(%d+)')) or 0 end
			end
		end
		if add > 0 and limit > 0 and n + mine[k] + add > limit then
			reply[k], full = 1, true
		end
	end
	at = at + 3
end
at = 5 + tonumber(ARGV[4])
for k, key in ipairs(KEYS) do
	local set, add = tonumber(ARGV[at]), tonumber(ARGV[at+1])
	if reply[k] == 0 and full and add > 0 then
		reply[k], add = 2, 0
	end
	if reply[k] < 3 and (set >= 0 or reply[k] == 0) then
		if reply[k] == 0 then mine[k] = mine[k] + add end
		if mine[k] > 0 then
			redis.call('HSET', key, self, string.format('%d 0 0 %d', mine[k], now))
			redis.call('PEXPIRE', key, believed)
		else
			redis.call('HDEL', key, self)
		end
	end
	at = at + 3
end
return reply
