package routing

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// fault is an error of Redis with the words for what it means: what is wrong, and what
// an operator does about it. Everything that uses the client of Dial, and the channel,
// gets it.
type fault struct {
	text string
	err  error // as it came
}

func (f *fault) Error() string { return f.text + ": " + oneLine(f.err) }
func (f *fault) Unwrap() error { return f.err }

// noSentinel is a fault that a sentinel replied. It does not unwrap: that is no reply of
// Redis, and redis.Nil, for a master that it does not know, is no missing record.
type noSentinel struct{ f fault }

func (n *noSentinel) Error() string { return n.f.Error() }

// allSentinels is how go-redis begins whatever sentinels have answered, or not.
const allSentinels = "redis: all sentinels specified in configuration are unreachable: "

// oneLine is an error's text where go-redis has joined one of each server.
func oneLine(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); len(lines) == 0 || !strings.HasSuffix(lines[len(lines)-1], line) {
			lines = append(lines, line)
		}
	}
	return strings.TrimPrefix(strings.Join(lines, "; "), allSentinels)
}

// faults finds the words, which depend on what was configured.
type faults struct {
	// Set once.
	tls, username, password bool // there is one
	sentinels               bool // lead to the server
	cluster                 bool

	dial atomic.Pointer[error] // why there is no connection; nil: the last attempt made one
}

func newFaults(c RedisConfig) *faults {
	return &faults{tls: c.TLS != nil, username: c.Username != "", password: !c.Password.IsZero(), sentinels: c.SentinelMaster != "", cluster: c.Cluster}
}

// faultsOf is for one that uses a client's address by itself.
func faultsOf(o *redis.Options) *faults {
	username, password := credentialsOf(o.CredentialsProvider)
	return &faults{tls: o.TLSConfig != nil, username: username != "", password: password != "", sentinels: o.Addr == behindSentinels}
}

// credentialsOf are what a client of Dial logs in with; another one has none.
func credentialsOf(provider func() (username, password string)) (username, password string) {
	if provider == nil {
		return "", ""
	}
	return provider()
}

// noCluster is for one of a cluster's nodes that is taken for a server by itself.
const noCluster = "this Redis is a node of a cluster: set redis.cluster: true"

// meanings are the beginnings of Redis's own errors, and the words for them. Constant.
var meanings = []struct{ starts, text string }{
	{"WRONGPASS", "Redis refuses the user name or the password: compare redis.username and redis.password_file with its ACL"},
	{"ERR invalid password", "Redis refuses the password: compare redis.password_file with its requirepass"},
	{"NOPERM", "the ACL user of Redis lacks a right: OPERATIONS.md has the list"},
	{"ERR The user executing the script can't run this command", "the ACL user of Redis lacks a right: OPERATIONS.md has the list"},
	{"ERR ACL failure in script", "the ACL user of Redis lacks a right: OPERATIONS.md has the list"},
	{"LOADING", "Redis has just started and is still loading its data: it answers when that is done"},
	{"ERR DB index is out of range", "Redis has no such database: redis.database is less than its setting databases, which is 16 by default"},
	{"ERR invalid DB index", "Redis has no such database: redis.database is less than its setting databases, which is 16 by default"},
	{"ERR SELECT is not allowed in cluster mode", "this Redis is a node of a cluster, which has database 0 only: set redis.cluster: true, without redis.database"},
	{"ERR This instance has cluster support disabled", "this Redis is no node of a cluster: leave out redis.cluster"},
	{"MOVED ", noCluster},
	{"ASK ", noCluster},
	{"CLUSTERDOWN", "the Redis Cluster is down: a part of its slots is at no node"},
	{"READONLY", "this Redis is a replica and takes no writes: redis.addresses names the primary, or sentinels with redis.sentinel_master"},
	{"MASTERDOWN", "this Redis is a replica that has lost its primary and answers nothing"},
	{"NOREPLICAS", "Redis takes no writes: it has too few replicas (its setting min-replicas-to-write)"},
	{"MISCONF", "Redis takes no writes because it cannot save to its disk: its own log says why"},
	{"OOM", "Redis takes no writes because its memory is full (its setting maxmemory)"},
	{"ERR max number of clients reached", "Redis takes no more connections (its setting maxclients)"},
	{"DENIED", "Redis is in protected mode, which lets in its own machine only: give it a password"},
	{"ERR unknown command", "Redis does not know a command that the gateway needs: it is older than Redis 6, or a sentinel, which wants redis.sentinel_master"},
}

// explain gives an error of a command its words. One that has none, or has them
// already, stays as it is.
func (f *faults) explain(err error) error {
	if err == nil || isExplained(err) {
		return err
	}
	var reply redis.Error
	var raw redisError // the channel's
	said := ""
	switch {
	case errors.As(err, &reply):
		said = reply.Error()
	case errors.As(err, &raw):
		said = string(raw)
	case errors.Is(err, context.DeadlineExceeded):
		// Who waited for a connection is not told why none was made.
		if why := f.dial.Load(); why != nil {
			return fmt.Errorf("%w: %w", err, *why)
		}
		return err
	default:
		return err
	}
	// Before a password Redis reads short commands only.
	if strings.HasPrefix(said, "NOAUTH") || strings.HasPrefix(said, "ERR Protocol error: unauthenticated ") {
		return &fault{f.noPassword(), err}
	}
	for _, known := range meanings {
		if strings.HasPrefix(said, known.starts) && !(f.cluster && known.text == noCluster) {
			return &fault{known.text, err}
		}
	}
	return err
}

func isExplained(err error) bool {
	return errors.As(err, new(*fault)) || errors.As(err, new(*noSentinel))
}

func (f *faults) noPassword() string {
	switch {
	case f.password:
		return "Redis wants a password, and has not taken the one of redis.password_file"
	case f.username:
		return "Redis wants a password, and redis.username has none: set redis.password_file"
	}
	return "Redis wants a password: set redis.password_file"
}

// explainHello is explain for the first exchange of a connection, where a server that
// expects TLS hangs up.
func (f *faults) explainHello(err error) error {
	if !f.tls && hangsUp(err) && !isExplained(err) {
		return &fault{"Redis closes the connection at the first word: if the port is one for TLS, set redis.tls: true; or it takes no more connections (its setting maxclients)", err}
	}
	return f.explain(err)
}

func hangsUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// explainDial gives words to what keeps a connection from being made, and notes it.
func (f *faults) explainDial(err error) error {
	var explained error
	switch {
	case err == nil:
	case f.sentinels && strings.HasPrefix(err.Error(), allSentinels):
		explained = f.explainSentinels(err)
	case f.noHandshake(err):
		explained = &fault{"Redis does not answer with TLS: if the port is one without, leave out redis.tls", err}
	}
	if explained == nil {
		f.dial.Store(nil)
		return err
	}
	f.dial.Store(&explained)
	return explained
}

// noHandshake tells a TLS handshake without an answer, to which a server without TLS
// waits for the rest, from an address without one.
func (f *faults) noHandshake(err error) bool {
	var op *net.OpError
	connecting := errors.As(err, &op) && op.Op == "dial"
	return f.tls && !connecting && (errors.Is(err, context.DeadlineExceeded) || hangsUp(err) || errors.As(err, new(tls.RecordHeaderError)))
}

// explainSentinels says why they have named no primary.
func (f *faults) explainSentinels(err error) error {
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return &noSentinel{fault{refusal(reply, err), err}}
	case !f.tls && hangsUp(err):
		return &fault{"the sentinels close the connection at the first word: if their port is one for TLS, set redis.tls: true", err}
	case f.noHandshake(err):
		return &fault{"the sentinels do not answer with TLS: if their port is one without, leave out redis.tls", err}
	}
	return &fault{"no sentinel can be asked", err}
}

// refusal is what a sentinel's reply means.
func refusal(reply redis.Error, err error) string {
	said := reply.Error()
	switch {
	case errors.Is(err, redis.Nil):
		return `the sentinels know no master of this name: redis.sentinel_master is the name in their "sentinel monitor"`
	case strings.HasPrefix(said, "NOAUTH"):
		return "the sentinels want a password: set redis.sentinel_password_file"
	case strings.HasPrefix(said, "WRONGPASS"), strings.HasPrefix(said, "ERR invalid password"):
		return "the sentinels refuse the user name or the password: compare redis.sentinel_username and redis.sentinel_password_file with their ACL"
	case strings.HasPrefix(said, "NOPERM"):
		return "the ACL user of the sentinels lacks a right: OPERATIONS.md has the list"
	case strings.HasPrefix(said, "ERR unknown command 'sentinel'"):
		return "redis.addresses names no sentinels: leave out redis.sentinel_master, or name them"
	}
	return "the sentinels name no primary"
}

// connecting is the hook that explains how connections are made, of one server or
// of each node of a cluster.
type connecting struct{ *faults }

func (c connecting) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		return conn, c.explainDial(err)
	}
}

func (c connecting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() != "hello" || err == nil {
			return err
		}
		return fmt.Errorf("hello: %w", c.explainHello(err)) // go-redis takes one layer off
	}
}

func (c connecting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// asking is the hook that explains how commands end.
type asking struct{ *faults }

func (a asking) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a asking) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return a.explain(next(ctx, cmd)) }
}

func (a asking) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := a.explain(next(ctx, cmds))
		failed := false
		for _, cmd := range cmds {
			if wrong := cmd.Err(); wrong != nil {
				failed = true
				cmd.SetErr(a.explain(wrong))
			}
		}
		if err != nil && !failed { // the connection was refused, of which go-redis tells no command
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}
