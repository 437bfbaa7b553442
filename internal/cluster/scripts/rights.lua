-- Returns which command of ARGV, each followed by its key, this Redis user may not run; ''
-- if it may run all, or before Redis 7, which cannot be asked.
for i = 1, #ARGV, 2 do
	if redis.acl_check_cmd and not redis.acl_check_cmd(ARGV[i], ARGV[i+1]) then
		return ARGV[i] .. ' on ' .. ARGV[i+1]
	end
end
return ''
