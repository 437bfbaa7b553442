-- Returns the networks with a successful login within ARGV[1] ms, the latest first, each with
-- how many ms ago it was.
local reply, all = {}, redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
	local ago = now - tonumber(all[i+1])
	if ago < tonumber(ARGV[1]) then
		reply[#reply+1] = all[i]
		reply[#reply+1] = ago
	end
end
return reply
