package limit

import "github.com/redis/go-redis/v9"

// script is what is run in Redis: its text is needed beside its hash, for a server
// that does not know it yet.
type script struct {
	text  string
	hash  string
	reads bool // it writes nothing
}

func newScript(text string) *script { return &script{text, redis.NewScript(text).Hash(), false} }

// newReader is newScript for one that writes nothing, with the arguments it is given.
func newReader(text string) *script { return &script{text, redis.NewScript(text).Hash(), true} }

// scripts are all that are run. Each has keys of one slot, and takes the time from
// Redis, so that the clocks of gateways need not agree.
type scripts struct {
	alive, sessions, known, proven, where, bans, changes, failures, uploads, rights *script // these read
	lease, beat, failed, forget, good, ban, lift, forgive, upload, part, probe      *script
}

func newScripts() *scripts {
	return &scripts{
		alive: newReader(clock + aliveScript), sessions: newReader(clock + sessionsScript), known: newReader(clock + knownScript),
		proven: newReader(clock + provenScript), where: newReader(clock + whereScript), bans: newReader(clock + bansScript),
		rights: newReader(rightsScript), changes: newReader(clock + changesScript), failures: newReader(clock + failedScript), uploads: newReader(uploadScript),
		lease: newScript(clock + leaseScript), beat: newScript(clock + beatScript), failed: newScript(clock + failedScript),
		forget: newScript(forgetScript), good: newScript(clock + goodScript), upload: newScript(uploadScript),
		ban: newScript(clock + announce + banScript), lift: newScript(announce + liftScript),
		forgive: newScript(announce + forgiveScript), part: newScript(partScript), probe: newScript(clock + probeScript),
	}
}

const clock = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
`

// leaseScript takes notes down, one for each key, if all limits allow for it: ARGV
// gateway, lease, believed, how many gateways are alive, and they, or * for all; then
// for each key n, version, whole, limit. A key is a hash of
// gateway -> "n version whole written", with the versions of the latest note and of
// the latest whole number. It gives for each key 0 when the note was taken down, 1
// when it was not, for the limit or as it was overtaken, 2 when it would have been
// but another's limit is reached: then none is; and 3 when the key is none of ours.
//
// Others count when they are alive and have written within the time they are
// believed, or have written within the lease, for those this gateway has not heard
// of yet.
const leaseScript = `
local self, lease, believed, at = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 5 + tonumber(ARGV[4])
local alive = {}
for i = 5, at - 1 do alive[ARGV[i]] = true end
local reply, down, keep, full = {}, {}, {}, false
for k, key in ipairs(KEYS) do
	local n, version, whole, limit = tonumber(ARGV[at]), tonumber(ARGV[at+1]), ARGV[at+2] == '1', tonumber(ARGV[at+3])
	at = at + 4
	local all, others = redis.pcall('HGETALL', key), 0
	local broken = all.err
	if broken then all = {} end
	local mine, latest, latestWhole = 0, 0, 0
	for i = 1, #all, 2 do
		local count, v, w, written = string.match(all[i+1], '^(%d+) (%d+) (%d+) (%d+)$')
		local age = now - (tonumber(written) or 0)
		if all[i] == self then
			mine, latest, latestWhole = tonumber(count) or 0, tonumber(v) or 0, tonumber(w) or 0
		elseif age < lease or ((alive[all[i]] or alive['*']) and age < believed) then
			others = others + tonumber(count)
		else
			redis.call('HDEL', key, all[i])
		end
	end
	reply[k] = broken and 3 or 1
	if not broken and version >= latestWhole and not (whole and version < latest) then
		if whole then
			mine, latestWhole = n, version
		else
			mine = math.max(0, mine + n)
		end
		if limit > 0 and others + mine > limit then
			full = true
		else
			down[k] = string.format('%d %d %d %d', mine, math.max(latest, version), latestWhole, now)
			keep[k] = (others + mine > 0) and believed or lease
		end
	end
end
for k, key in ipairs(KEYS) do
	if down[k] and full then
		reply[k] = 2
	elseif down[k] then
		reply[k] = 0
		redis.call('HSET', key, self, down[k])
		redis.call('PEXPIRE', key, keep[k])
	end
end
return reply
`

// beatScript says that this gateway is alive, and gives whether it was thought to
// be, and who else is.
const beatScript = `
local self, lease = ARGV[1], tonumber(ARGV[2])
local last = redis.call('ZSCORE', KEYS[1], self)
redis.call('ZADD', KEYS[1], now, self)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%d', now - lease))
redis.call('PEXPIRE', KEYS[1], 10 * lease)
local known = 0
if last and now - tonumber(last) < lease then known = 1 end
local reply = {known}
for _, other in ipairs(redis.call('ZRANGE', KEYS[1], 0, 999)) do
	if other ~= self then reply[#reply+1] = other end
end
return reply
`

// aliveScript gives the gateways that are.
const aliveScript = `return redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%d', now - tonumber(ARGV[1])), '+inf')`

// sessionsScript counts the sessions at a key as leaseScript does, changing
// nothing.
const sessionsScript = `
local lease, believed = tonumber(ARGV[1]), tonumber(ARGV[2])
local alive = {}
for i = 3, #ARGV do alive[ARGV[i]] = true end
local all, n = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #all, 2 do
	local count, at = string.match(all[i+1], '^(%d+) %d+ %d+ (%d+)$')
	local age = now - (tonumber(at) or 0)
	if age < lease or (alive[all[i]] and age < believed) then n = n + tonumber(count) end
end
return n
`

// failedScript adds ARGV[1] to windows of the lengths that follow, as window.go
// does, and gives their counts. With 0 it changes nothing. Of who fails once or
// twice the memory is short, or a flood of strangers would fill Redis.
const failedScript = `
local add, reply = tonumber(ARGV[1]), {}
local old = redis.call('HMGET', KEYS[1], 'a', 'b', 'c')
local fields, longest = {'a', 'b', 'c'}, 0
for i = 2, #ARGV do
	local length = tonumber(ARGV[i])
	longest = math.max(longest, length)
	local period = math.floor(now / length)
	local p, n, before = string.match(old[i-1] or '', '^(%d+) (%d+) (%d+)$')
	p, n, before = tonumber(p), tonumber(n) or 0, tonumber(before) or 0
	if p ~= period then
		before = (p == period - 1) and n or 0
		n = 0
	end
	n = n + add
	if add > 0 then
		redis.call('HSET', KEYS[1], fields[i-1], string.format('%d %d %d', period, n, before))
	end
	reply[#reply+1] = n + math.floor(before * (length - now % length) / length)
end
if add > 0 then
	local keep = 2 * longest
	if reply[#reply] < 3 then keep = math.min(keep, 1200000) end
	redis.call('PEXPIRE', KEYS[1], keep)
end
return reply
`

// forgetScript drops a key.
const forgetScript = `return redis.call('DEL', KEYS[1])`

// goodScript notes that a user has logged in from a network, and keeps the 32
// latest.
const goodScript = `
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -33)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
`

// knownScript says whether it has, of late.
const knownScript = `
local last = redis.call('ZSCORE', KEYS[1], ARGV[1])
if last and now - tonumber(last) < tonumber(ARGV[2]) then return 1 end
return 0
`

// provenScript says whether a user has logged in from any network of late.
const provenScript = `
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if last[2] and now - tonumber(last[2]) < tonumber(ARGV[1]) then return 1 end
return 0
`

// whereScript gives the networks of a user, the latest first, each with how long
// ago.
const whereScript = `
local reply, all = {}, redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
	local ago = now - tonumber(all[i+1])
	if ago < tonumber(ARGV[1]) then
		reply[#reply+1] = all[i]
		reply[#reply+1] = ago
	end
end
return reply
`

// announce tells every gateway of a change: a stream of the latest, and a counter
// by which a reader knows that it has missed none.
// KEYS: nets, ends, changes, count.
const announce = `
local function announce(...)
	local n = redis.call('INCR', KEYS[4])
	redis.call('XADD', KEYS[3], 'MAXLEN', '~', 4096, '*', 'n', n, ...)
	return n
end
`

// rightsScript gives which command of ARGV, that has each before its key, this Redis user
// may not run; "" when it may run all, or before Redis 7, where there is no way to ask.
const rightsScript = `
for i = 1, #ARGV, 2 do
	if redis.acl_check_cmd and not redis.acl_check_cmd(ARGV[i], ARGV[i+1]) then
		return ARGV[i] .. ' on ' .. ARGV[i+1]
	end
end
return ''
`

// banScript bans a network: ARGV net, first, longest, why, lived, note, how (as
// banCall has it), room. A ban under way stays, but for an operator's; an operator's
// stays for the same one said again. Of each network there is "until count lived why
// note".
const banScript = `
local net, first, longest, remembered = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), 86400000
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - remembered, 'LIMIT', 0, 100)) do
	redis.call('ZREM', KEYS[2], old)
	redis.call('HDEL', KEYS[1], old)
end
local count, how = 0, ARGV[7]
local old = redis.call('HGET', KEYS[1], net)
if old then
	local till, times, lived, why = string.match(old, '^(%d+) (%d+) (%d) (%S+)')
	if till then
		if tonumber(till) > now and (how == 'many' or how == 'again' and why == 'operator') then
			return {0, tonumber(till) - now, tonumber(times), why}
		end
		count = tonumber(times)
	end
elseif redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[8]) then
	return redis.error_reply('NOROOM there are too many bans')
end
count = count + 1
local length = first
if how == 'many' then
	length = math.min(first * 2 ^ math.min(count - 1, 32), longest)
end
local till = now + length
redis.call('HSET', KEYS[1], net, string.format('%d %d %s %s %s', till, count, ARGV[5], ARGV[4], ARGV[6]))
redis.call('ZADD', KEYS[2], till, net)
announce(how == 'again' and 'again' or 'ban', net)
return {1, length, count, ARGV[4]}
`

// liftScript ends the bans of the networks in ARGV, and forgets their history.
const liftScript = `
for i = 1, #ARGV do
	redis.call('HDEL', KEYS[1], ARGV[i])
	redis.call('ZREM', KEYS[2], ARGV[i])
	announce('lift', ARGV[i])
end
return #ARGV
`

// forgiveScript has every gateway forget what was tried on a user.
const forgiveScript = `return announce('forgive', ARGV[1])`

// bansScript gives a page of the bans, of which ARGV[1] is the place: the next
// place, and for each network what is left of its ban in ms, below 0 for one that
// is over, and its record.
const bansScript = `
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 500)
local reply = {page[1]}
for i = 1, #page[2], 2 do
	local till, rest = string.match(page[2][i+1], '^(%d+) (.*)$')
	if till then
		reply[#reply+1] = page[2][i]
		reply[#reply+1] = tonumber(till) - now
		reply[#reply+1] = rest
	end
end
return reply
`

// changesScript gives the counter, the latest place in the stream, and what came
// behind place ARGV[1], at most 500: counter, kind, who, and of a ban what is left and
// its record.
const changesScript = `
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
local reply = {tonumber(redis.call('GET', KEYS[4]) or '0'), last[1] and last[1][1] or '0-0'}
if ARGV[1] == '' then return reply end
for _, change in ipairs(redis.call('XRANGE', KEYS[3], '(' .. ARGV[1], '+', 'COUNT', 500)) do
	local f = change[2]
	local left, record = 0, ''
	if f[3] == 'ban' or f[3] == 'again' then
		local till, rest = string.match(redis.call('HGET', KEYS[1], f[4]) or '', '^(%d+) (.*)$')
		if till then left, record = tonumber(till) - now, rest end
	end
	for _, x in ipairs({change[1], tonumber(f[2]), f[3], f[4], left, record}) do reply[#reply+1] = x end
end
return reply
`
