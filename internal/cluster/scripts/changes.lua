-- Returns the counter, the latest id in the stream, and at most 500 changes after the id
-- ARGV[1]: id, counter, kind, subject, and of a ban the ms until it ends and its record.
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
local reply = {tonumber(redis.call('GET', KEYS[4]) or '0'), last[1] and last[1][1] or '0-0'}
if ARGV[1] == '' then return reply end
for _, change in ipairs(redis.call('XRANGE', KEYS[3], '(' .. ARGV[1], '+', 'COUNT', 500)) do
	local f = change[2]
	local left, record = 0, ''
	if f[3] == 'ban' or f[3] == 'again' then
		local till, rest = string.match(redis.call('HGET', KEYS[1], f[4]) or '', '^(%d+) (.*)$')
		if till then left, record = tonumber(till) - now, rest end
	end
	for _, x in ipairs({change[1], tonumber(f[2]), f[3], f[4], left, record}) do reply[#reply+1] = x end
end
return reply
