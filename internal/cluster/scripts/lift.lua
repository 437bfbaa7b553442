-- Ends the bans of the networks in ARGV, and forgets their history. Gateways are told of the first,
-- the one that the operator named, and end all bans that overlap it.
for i = 1, #ARGV do
	redis.call('HDEL', KEYS[1], ARGV[i])
	redis.call('ZREM', KEYS[2], ARGV[i])
end
announce('lift', ARGV[1])
return #ARGV
