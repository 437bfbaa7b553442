-- Ends the bans of the networks in ARGV, and forgets their history.
for i = 1, #ARGV do
	redis.call('HDEL', KEYS[1], ARGV[i])
	redis.call('ZREM', KEYS[2], ARGV[i])
	announce('lift', ARGV[i])
end
return #ARGV
