-- Keeps the place of a user that is still this gateway's, or sets one that was lost. KEYS[1]:
-- the place. ARGV: the address, and how long it lasts in milliseconds.
local now = redis.call('GET', KEYS[1])
if not now then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
elseif now == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return now or ''
