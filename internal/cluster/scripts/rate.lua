-- GCRA: takes one token of a bucket that holds ARGV[1] and gets one every ARGV[2] seconds.
-- The key has the time, in seconds since 2017, when the bucket is full again. Returns 0, or
-- the ms until there is a token.
local burst, interval = tonumber(ARGV[1]), tonumber(ARGV[2])
local t = (time[1] - 1483228800) + time[2] / 1000000
local full = math.max(tonumber(redis.call('GET', KEYS[1])) or 0, t) + interval
local wait = full - burst * interval - t
if wait > 0 then return math.ceil(wait * 1000) end
redis.call('SET', KEYS[1], string.format('%.6f', full), 'PX', math.ceil((full - t) * 1000))
return 0
