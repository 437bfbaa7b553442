-- Keeps the place of a user that is still this gateway's, or sets one that was lost. KEYS[1]:
-- the place. ARGV: the address, and how long it lasts in milliseconds. The result is the place.
local place = redis.call('GET', KEYS[1])
if not place then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return ARGV[1]
end
if place == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return place
