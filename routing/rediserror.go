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

// explainedError is an error of Redis with an explanation: what is wrong, and what to do about
// it. The errors of clients from Dial and of invalidation connections are explained.
type explainedError struct {
	text string
	err  error // the original
}

func (e *explainedError) Error() string { return e.text + ": " + joinLines(e.err) }
func (e *explainedError) Unwrap() error { return e.err }

// sentinelError is an explained error reply of a sentinel. It does not unwrap: the reply is
// not one of Redis, and redis.Nil, for an unknown master, must not be taken for a missing
// record.
type sentinelError struct{ explained explainedError }

func (e *sentinelError) Error() string { return e.explained.Error() }

// sentinelErrPrefix is how go-redis begins the errors of sentinels.
const sentinelErrPrefix = "redis: all sentinels specified in configuration are unreachable: "

// joinLines returns an error's text in one line. go-redis joins the errors of several servers
// with newlines.
func joinLines(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); len(lines) == 0 || !strings.HasSuffix(lines[len(lines)-1], line) {
			lines = append(lines, line)
		}
	}
	return strings.TrimPrefix(strings.Join(lines, "; "), sentinelErrPrefix)
}

// errorExplainer finds the explanation of an error, which depends on the configuration.
type errorExplainer struct {
	// Set once.
	tls         bool                               // configured
	credentials func() (username, password string) // of Redis; nil: none
	sentinels   bool                               // Sentinel leads to the server
	cluster     bool

	dialErr atomic.Pointer[error] // why the last attempt to connect failed, if explained
}

// explainerOf returns the explainer for connections made with a client's address.
func explainerOf(o *redis.Options) *errorExplainer {
	return &errorExplainer{tls: o.TLSConfig != nil, credentials: o.CredentialsProvider, sentinels: o.Addr == failoverAddr}
}

// credentialsOf returns what a client of Dial logs in with; empty for other clients.
func credentialsOf(provider func() (username, password string)) (username, password string) {
	if provider == nil {
		return "", ""
	}
	return provider()
}

// clusterNodeText explains a cluster node that is configured as a single server.
const clusterNodeText = "this Redis is a node of a cluster: set redis.cluster: true"

// explanations are the prefixes of Redis's error replies and their explanations. Constant.
var explanations = []struct{ starts, text string }{
	{"WRONGPASS", "Redis refuses the user name or the password: compare redis.username and redis.password_file with its ACL"},
	{"ERR invalid password", "Redis refuses the password: compare redis.password_file with its requirepass"},
	{"NOPERM", "the ACL user of Redis lacks a permission: docs/operating/redis.md has the list"},
	{"ERR The user executing the script can't run this command", "the ACL user of Redis lacks a permission: docs/operating/redis.md has the list"},
	{"ERR ACL failure in script", "the ACL user of Redis lacks a permission: docs/operating/redis.md has the list"},
	{"LOADING", "Redis has just started and is still loading its data: it answers when that is done"},
	{"ERR DB index is out of range", "Redis has no such database: redis.database is less than its setting databases, which is 16 by default"},
	{"ERR invalid DB index", "Redis has no such database: redis.database is less than its setting databases, which is 16 by default"},
	{"ERR SELECT is not allowed in cluster mode", "this Redis is a node of a cluster, which has database 0 only: set redis.cluster: true, without redis.database"},
	{"ERR This instance has cluster support disabled", "this Redis is not a cluster node: leave out redis.cluster"},
	{"MOVED ", clusterNodeText},
	{"ASK ", clusterNodeText},
	{"CLUSTERDOWN", "the Redis Cluster is down: no node serves some of its slots"},
	{"READONLY", "this Redis is a replica and accepts no writes: redis.addresses names the primary, or sentinels with redis.sentinel_master"},
	{"MASTERDOWN", "this Redis is a replica that has lost its primary and answers nothing"},
	{"NOREPLICAS", "Redis accepts no writes: it has too few replicas (its setting min-replicas-to-write)"},
	{"MISCONF", "Redis accepts no writes because it cannot save to its disk: its own log says why"},
	{"OOM", "Redis accepts no writes because its memory is full (its setting maxmemory)"},
	{"ERR max number of clients reached", "Redis accepts no more connections (its setting maxclients)"},
	{"DENIED", "Redis is in protected mode, which accepts connections from its own machine only: give it a password"},
	{"ERR unknown command", "Redis does not know a command that the gateway needs: it is older than Redis 6, or a sentinel, which needs redis.sentinel_master"},
}

// explain adds an explanation to an error of a command. It returns err itself if it knows none
// or err has one already.
func (e *errorExplainer) explain(err error) error {
	if err == nil || isExplained(err) {
		return err
	}
	var reply redis.Error
	var raw redisError // of an invalidation connection
	text := ""
	switch {
	case errors.As(err, &reply):
		text = reply.Error()
	case errors.As(err, &raw):
		text = string(raw)
	case errors.Is(err, context.DeadlineExceeded):
		// The error of a wait for a connection does not include why none was made.
		if dialErr := e.dialErr.Load(); dialErr != nil {
			return fmt.Errorf("%w: %w", err, *dialErr)
		}
		return err
	default:
		return err
	}
	// Before AUTH, Redis accepts short commands only.
	if strings.HasPrefix(text, "NOAUTH") || strings.HasPrefix(text, "ERR Protocol error: unauthenticated ") {
		return &explainedError{e.missingPasswordText(), err}
	}
	for _, known := range explanations {
		if strings.HasPrefix(text, known.starts) && !(e.cluster && known.text == clusterNodeText) {
			return &explainedError{known.text, err}
		}
	}
	return err
}

func isExplained(err error) bool {
	return errors.As(err, new(*explainedError)) || errors.As(err, new(*sentinelError))
}

func (e *errorExplainer) missingPasswordText() string {
	switch username, password := credentialsOf(e.credentials); {
	case password != "":
		return "Redis requires a password, and has not accepted the one of redis.password_file"
	case username != "":
		return "Redis requires a password, and redis.username has none: set redis.password_file"
	}
	return "Redis requires a password: set redis.password_file"
}

// explainHello is explain for the first exchange of a connection, where a server that expects
// TLS closes it.
func (e *errorExplainer) explainHello(err error) error {
	if !e.tls && isClosedByPeer(err) && !isExplained(err) {
		return &explainedError{"Redis closes the connection at the first command: if the port is one for TLS, set redis.tls: true; or it accepts no more connections (its setting maxclients)", err}
	}
	return e.explain(err)
}

func isClosedByPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// explainDial adds an explanation to an error of connecting, and stores it in dialErr.
func (e *errorExplainer) explainDial(err error) error {
	var explained error
	switch {
	case err == nil:
	case e.sentinels && strings.HasPrefix(err.Error(), sentinelErrPrefix):
		explained = e.explainSentinels(err)
	case e.isHandshakeFailure(err):
		explained = &explainedError{"Redis does not answer with TLS: if the port is one without, leave out redis.tls", err}
	}
	if explained == nil {
		e.dialErr.Store(nil)
		return err
	}
	e.dialErr.Store(&explained)
	return explained
}

// isHandshakeFailure reports whether a TLS handshake failed, as opposed to the dial. A server
// without TLS may wait for more bytes, so a timeout counts.
func (e *errorExplainer) isHandshakeFailure(err error) bool {
	var op *net.OpError
	dialing := errors.As(err, &op) && op.Op == "dial"
	return e.tls && !dialing && (errors.Is(err, context.DeadlineExceeded) || isClosedByPeer(err) || errors.As(err, new(tls.RecordHeaderError)))
}

// explainSentinels explains why the sentinels have named no primary.
func (e *errorExplainer) explainSentinels(err error) error {
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return &sentinelError{explainedError{sentinelReplyText(reply, err), err}}
	case !e.tls && isClosedByPeer(err):
		return &explainedError{"the sentinels close the connection at the first command: if their port is one for TLS, set redis.tls: true", err}
	case e.isHandshakeFailure(err):
		return &explainedError{"the sentinels do not answer with TLS: if their port is one without, leave out redis.tls", err}
	}
	return &explainedError{"no sentinel can be reached", err}
}

// sentinelReplyText explains an error reply of a sentinel.
func sentinelReplyText(reply redis.Error, err error) string {
	text := reply.Error()
	switch {
	case errors.Is(err, redis.Nil):
		return `the sentinels know no master of this name: redis.sentinel_master is the name in their "sentinel monitor"`
	case strings.HasPrefix(text, "NOAUTH"):
		return "the sentinels require a password: set redis.sentinel_password_file"
	case strings.HasPrefix(text, "WRONGPASS"), strings.HasPrefix(text, "ERR invalid password"):
		return "the sentinels refuse the user name or the password: compare redis.sentinel_username and redis.sentinel_password_file with their ACL"
	case strings.HasPrefix(text, "NOPERM"):
		return "the ACL user of the sentinels lacks a permission: docs/operating/redis.md has the list"
	case strings.HasPrefix(text, "ERR unknown command 'sentinel'"):
		return "redis.addresses names no sentinels: leave out redis.sentinel_master, or name them"
	}
	return "the sentinels name no primary"
}

// connectHook explains errors of connecting, for one server or each node of a cluster.
type connectHook struct{ *errorExplainer }

func (h connectHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		return conn, h.explainDial(err)
	}
}

func (h connectHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() != "hello" || err == nil {
			return err
		}
		return fmt.Errorf("hello: %w", h.explainHello(err)) // go-redis unwraps once
	}
}

func (h connectHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// commandHook explains errors of commands.
type commandHook struct {
	*errorExplainer
	addresses string
}

// explain also adds the addresses to an error that is not a reply.
func (h commandHook) explain(err error) error {
	if err = h.errorExplainer.explain(err); err == nil || errors.As(err, new(redis.Error)) {
		return err
	}
	return fmt.Errorf("redis %s: %w", h.addresses, err)
}

func (h commandHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h commandHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return h.explain(next(ctx, cmd)) }
}

func (h commandHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := h.explain(next(ctx, cmds))
		failed := false
		for _, cmd := range cmds {
			if cmdErr := cmd.Err(); cmdErr != nil {
				failed = true
				cmd.SetErr(h.explain(cmdErr))
			}
		}
		if err != nil && !failed { // the connection failed, and go-redis set no error on the commands
			for _, cmd := range cmds {
				cmd.SetErr(err)
			}
		}
		return err
	}
}
