-- Bans a network. ARGV: network, duration, longest, reason, active, note, how, room. how is
-- "many": twice as long for each earlier ban; "order": exactly for the duration; "again":
-- the same, but another gateway may have said so. A ban that has not ended stays, unless an
-- operator orders another. Each network has "until count active reason note".
local net, first, longest, remembered = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 86400000
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - remembered, 'LIMIT', 0, 100)) do
	redis.call('ZREM', KEYS[2], old)
	redis.call('HDEL', KEYS[1], old)
end
local count, how = 0, ARGV[7]
local old = redis.call('HGET', KEYS[1], net)
if old then
	local till, times, lived, why = string.match(old, '^(%d+) (%d+) (%d) (%S+)')
	if till then
		if tonumber(till) > now and (how == 'many' or how == 'again' and why == 'operator') then
			return {0, tonumber(till) - now, tonumber(times), why}
		end
		count = tonumber(times)
	end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[8]) then
	return redis.error_reply('NOROOM there are too many bans')
end
count = count + 1
local length = first
if how == 'many' then
	length = math.min(first * 2 ^ math.min(count - 1, 32), longest)
end
local till = now + length
redis.call('HSET', KEYS[1], net, string.format('%d %d %s %s %s', till, count, ARGV[5], ARGV[4], ARGV[6]))
redis.call('ZADD', KEYS[2], till, net)
announce(how == 'again' and 'again' or 'ban', net)
return {1, length, count, ARGV[4]}
