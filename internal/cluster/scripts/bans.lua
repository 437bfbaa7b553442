-- Returns a page of the bans from the cursor ARGV[1]: the next cursor, then each network with
-- the ms until its ban ends, below 0 for one that has ended, and its record.
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 500)
local reply = {page[1]}
for i = 1, #page[2], 2 do
	local till, rest = string.match(page[2][i+1], '^(%d+) (.*)$')
	if till then
		reply[#reply+1] = page[2][i]
		reply[#reply+1] = tonumber(till) - now
		reply[#reply+1] = rest
	end
end
return reply
