-- Returns the place of a user, and keeps or sets it. KEYS[1]: the place. ARGV: how long it
-- lasts in milliseconds, the number of candidates, the candidates, and the addresses that only
-- keep users. The result is empty if there is no candidate, and no place that may be kept.
local now = redis.call('GET', KEYS[1])
for i = 3, #ARGV do
  if ARGV[i] == now then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    return now
  end
end
if ARGV[2] == '0' then return '' end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[1])
return ARGV[3]
