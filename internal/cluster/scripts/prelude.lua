-- Every script begins with this text. The time is that of Redis, so that the clocks of
-- gateways need not agree. All keys of a script have one slot of a Redis Cluster.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- announce adds a change to the stream of the latest changes. A reader of the counter
-- knows whether it has missed one. KEYS: nets, ends, changes, count.
local function announce(...)
	local n = redis.call('INCR', KEYS[4])
	redis.call('XADD', KEYS[3], 'MAXLEN', '~', 4096, '*', 'n', n, ...)
	return n
end

-- others returns the sessions of the other gateways in a hash of gateway -> "n 0 0 written",
-- and the gateways to remove. A gateway's value counts while the gateway is alive and has
-- written it within believed, or if it was written within lease: its heartbeat may not have
-- been seen yet.
local function others(all, self, alive, lease, believed)
	local n, dead = 0, {}
	for i = 1, #all, 2 do
		local count, written = string.match(all[i+1], '^(%d+) %d+ %d+ (%d+)$')
		local age = now - (tonumber(written) or 0)
		if all[i] == self then
			-- the caller adds its own
		elseif age < lease or ((alive[all[i]] or alive['*']) and age < believed) then
			n = n + tonumber(count)
		else
			dead[#dead+1] = all[i]
		end
	end
	return n, dead
end
