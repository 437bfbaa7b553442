-- Adds a command to the stream, with a deadline on the clock of this Redis. KEYS[1]: the stream.
-- ARGV: how long the command is valid in milliseconds, about how many commands are kept, id, op,
-- args, by.
local now = redis.call('TIME')
local deadline = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[1]
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'id', ARGV[3], 'op', ARGV[4], 'args', ARGV[5],
  'by', ARGV[6], 'deadline', string.format('%.0f', deadline))
