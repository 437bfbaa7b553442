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

// explainedError is an error of Redis with the words for what it means: what is wrong, and what
// an operator does about it. Everything that uses the client of Dial, and the channel,
// gets it.
type explainedError struct {
	text string
	err  error // as it came
}

func (f *explainedError) Error() string { return f.text + ": " + joinLines(f.err) }
func (f *explainedError) Unwrap() error { return f.err }

// sentinelError is a fault that a sentinel replied. It does not unwrap: that is no reply of
// Redis, and redis.Nil, for a master that it does not know, is no missing record.
type sentinelError struct{ explained explainedError }

func (n *sentinelError) Error() string { return n.explained.Error() }

// sentinelErrPrefix is how go-redis begins whatever sentinels have answered, or not.
const sentinelErrPrefix = "redis: all sentinels specified in configuration are unreachable: "

// joinLines is an error's text where go-redis has joined one of each server.
func joinLines(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); len(lines) == 0 || !strings.HasSuffix(lines[len(lines)-1], line) {
			lines = append(lines, line)
		}
	}
	return strings.TrimPrefix(strings.Join(lines, "; "), sentinelErrPrefix)
}

// errorExplainer finds the words, which depend on what was configured.
type errorExplainer struct {
	// Set once.
	tls, username, password bool // there is one
	sentinels               bool // lead to the server
	cluster                 bool

	dialErr atomic.Pointer[error] // why there is no connection; nil: the last attempt made one
}

func newErrorExplainer(c RedisConfig) *errorExplainer {
	return &errorExplainer{tls: c.TLS != nil, username: c.Username != "", password: !c.Password.IsZero(), sentinels: c.SentinelMaster != "", cluster: c.Cluster}
}

// explainerOf is for one that uses a client's address by itself.
func explainerOf(o *redis.Options) *errorExplainer {
	username, password := credentialsOf(o.CredentialsProvider)
	return &errorExplainer{tls: o.TLSConfig != nil, username: username != "", password: password != "", sentinels: o.Addr == failoverAddr}
}

// credentialsOf are what a client of Dial logs in with; another one has none.
func credentialsOf(provider func() (username, password string)) (username, password string) {
	if provider == nil {
		return "", ""
	}
	return provider()
}

// clusterNodeText is for one of a cluster's nodes that is taken for a server by itself.
const clusterNodeText = "this Redis is a node of a cluster: set redis.cluster: true"

// explanations are the beginnings of Redis's own errors, and the words for them. Constant.
var explanations = []struct{ starts, text string }{
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
	{"MOVED ", clusterNodeText},
	{"ASK ", clusterNodeText},
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
func (f *errorExplainer) explain(err error) error {
	if err == nil || isExplained(err) {
		return err
	}
	var reply redis.Error
	var raw redisError // the channel's
	text := ""
	switch {
	case errors.As(err, &reply):
		text = reply.Error()
	case errors.As(err, &raw):
		text = string(raw)
	case errors.Is(err, context.DeadlineExceeded):
		// Who waited for a connection is not told why none was made.
		if dialErr := f.dialErr.Load(); dialErr != nil {
			return fmt.Errorf("%w: %w", err, *dialErr)
		}
		return err
	default:
		return err
	}
	// Before a password Redis reads short commands only.
	if strings.HasPrefix(text, "NOAUTH") || strings.HasPrefix(text, "ERR Protocol error: unauthenticated ") {
		return &explainedError{f.missingPasswordText(), err}
	}
	for _, known := range explanations {
		if strings.HasPrefix(text, known.starts) && !(f.cluster && known.text == clusterNodeText) {
			return &explainedError{known.text, err}
		}
	}
	return err
}

func isExplained(err error) bool {
	return errors.As(err, new(*explainedError)) || errors.As(err, new(*sentinelError))
}

func (f *errorExplainer) missingPasswordText() string {
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
func (f *errorExplainer) explainHello(err error) error {
	if !f.tls && isClosedByPeer(err) && !isExplained(err) {
		return &explainedError{"Redis closes the connection at the first word: if the port is one for TLS, set redis.tls: true; or it takes no more connections (its setting maxclients)", err}
	}
	return f.explain(err)
}

func isClosedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// explainDial gives words to what keeps a connection from being made, and notes it.
func (f *errorExplainer) explainDial(err error) error {
	var explained error
	switch {
	case err == nil:
	case f.sentinels && strings.HasPrefix(err.Error(), sentinelErrPrefix):
		explained = f.explainSentinels(err)
	case f.isHandshakeFailure(err):
		explained = &explainedError{"Redis does not answer with TLS: if the port is one without, leave out redis.tls", err}
	}
	if explained == nil {
		f.dialErr.Store(nil)
		return err
	}
	f.dialErr.Store(&explained)
	return explained
}

// isHandshakeFailure tells a TLS handshake without an answer, to which a server without TLS
// waits for the rest, from an address without one.
func (f *errorExplainer) isHandshakeFailure(err error) bool {
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	return f.tls && !dialing && (errors.Is(err, context.DeadlineExceeded) || isClosedByPeer(err) || errors.As(err, new(tls.RecordHeaderError)))
}

// explainSentinels says why they have named no primary.
func (f *errorExplainer) explainSentinels(err error) error {
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return &sentinelError{explainedError{sentinelReplyText(reply, err), err}}
	case !f.tls && isClosedByPeer(err):
		return &explainedError{"the sentinels close the connection at the first word: if their port is one for TLS, set redis.tls: true", err}
	case f.isHandshakeFailure(err):
		return &explainedError{"the sentinels do not answer with TLS: if their port is one without, leave out redis.tls", err}
	}
	return &explainedError{"no sentinel can be asked", err}
}

// sentinelReplyText is what a sentinel's reply means.
func sentinelReplyText(reply redis.Error, err error) string {
	text := reply.Error()
	switch {
	case errors.Is(err, redis.Nil):
		return `the sentinels know no master of this name: redis.sentinel_master is the name in their "sentinel monitor"`
	case strings.HasPrefix(text, "NOAUTH"):
		return "the sentinels want a password: set redis.sentinel_password_file"
	case strings.HasPrefix(text, "WRONGPASS"), strings.HasPrefix(text, "ERR invalid password"):
		return "the sentinels refuse the user name or the password: compare redis.sentinel_username and redis.sentinel_password_file with their ACL"
	case strings.HasPrefix(text, "NOPERM"):
		return "the ACL user of the sentinels lacks a right: OPERATIONS.md has the list"
	case strings.HasPrefix(text, "ERR unknown command 'sentinel'"):
		return "redis.addresses names no sentinels: leave out redis.sentinel_master, or name them"
	}
	return "the sentinels name no primary"
}

// connectHook is the hook that explains how connections are made, of one server or
// of each node of a cluster.
type connectHook struct{ *errorExplainer }

func (c connectHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		return conn, c.explainDial(err)
	}
}

func (c connectHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() != "hello" || err == nil {
			return err
		}
		return fmt.Errorf("hello: %w", c.explainHello(err)) // go-redis takes one layer off
	}
}

func (c connectHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// commandHook is the hook that explains how commands end.
type commandHook struct{ *errorExplainer }

func (a commandHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a commandHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return a.explain(next(ctx, cmd)) }
}

func (a commandHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := a.explain(next(ctx, cmds))
		failed := false
		for _, cmd := range cmds {
			if cmdErr := cmd.Err(); cmdErr != nil {
				failed = true
				cmd.SetErr(a.explain(cmdErr))
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
