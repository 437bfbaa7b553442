-- Returns for each network that follows ARGV[1], and then for any network at all, whether
-- there was a successful login within ARGV[1] ms.
local keep, reply = tonumber(ARGV[1]), {}
for i = 2, #ARGV do
	local last = redis.call('ZSCORE', KEYS[1], ARGV[i])
	reply[i-1] = (last and now - tonumber(last) < keep) and 1 or 0
end
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
reply[#reply+1] = (last[2] and now - tonumber(last[2]) < keep) and 1 or 0
return reply
