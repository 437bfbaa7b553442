-- Adds ARGV[1] to windows of the lengths that follow, in ms, and returns their counts. A
-- window is its period, the count in it, and the count in the period before, of which the
-- part counts that is less than the length ago. With 0 it changes nothing. One or two
-- failures are kept for a short time, or a flood of made-up users would fill Redis.
local add, reply = tonumber(ARGV[1]), {}
local fields, longest = {'a', 'b', 'c'}, 0
local old = redis.call('HMGET', KEYS[1], 'a', 'b', 'c')
for i = 2, #ARGV do
	local length = tonumber(ARGV[i])
	longest = math.max(longest, length)
	local period = math.floor(now / length)
	local p, n, before = string.match(old[i-1] or '', '^(%d+) (%d+) (%d+)$')
	p, n, before = tonumber(p), tonumber(n) or 0, tonumber(before) or 0
	if p ~= period then
		before = (p == period - 1) and n or 0
		n = 0
	end
	n = n + add
	if add > 0 then
		redis.call('HSET', KEYS[1], fields[i-1], string.format('%d %d %d', period, n, before))
	end
	reply[#reply+1] = n + math.floor(before * (length - now % length) / length)
end
if add > 0 then
	local keep = 2 * longest
	if reply[#reply] < 3 then keep = math.min(keep, 1200000) end
	redis.call('PEXPIRE', KEYS[1], keep)
end
return reply
