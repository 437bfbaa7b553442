-- Returns the place of a user, and keeps or sets it. KEYS[1]: the place. ARGV: how long it
-- lasts in milliseconds, where the caller knows the user to be, the number of candidates, the
-- candidates, and the addresses that only keep users. The result is empty if there is no
-- candidate, and no place that may be kept.
local place = redis.call('GET', KEYS[1])
local known = false
for i = 4, #ARGV do
  if ARGV[i] == place then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
    return place
  end
  known = known or ARGV[i] == ARGV[2]
end
local chosen = ARGV[2]
if not known then
  if ARGV[3] == '0' then return '' end
  chosen = ARGV[4]
end
redis.call('SET', KEYS[1], chosen, 'PX', ARGV[1])
return chosen
