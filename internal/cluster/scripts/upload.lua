-- Adds ARGV[1] bytes to a sum unless it would exceed ARGV[2], and keeps it for ARGV[3] ms.
-- Returns whether it was added, and the sum.
local sum, n = tonumber(redis.call('GET', KEYS[1])) or 0, tonumber(ARGV[1])
if sum + n > tonumber(ARGV[2]) then return {0, sum} end
redis.call('SET', KEYS[1], string.format('%d', sum + n), 'PX', ARGV[3])
return {1, sum + n}
