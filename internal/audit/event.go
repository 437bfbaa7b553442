package audit

import (
	"crypto/tls"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"imapgate/internal/identity"
)

// cipherNames is tls.CipherSuiteName as a table: that function makes the whole
// list anew for each call.
var cipherNames = nameCiphers()

func nameCiphers() map[uint16]string {
	names := make(map[uint16]string)
	for _, c := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		names[c.ID] = c.Name
	}
	return names
}

// Client is what is known of the person's side of a connection. It is filled
// as the connection advances; zero fields are left out of records.
type Client struct {
	Session    string         // random id, also given to the backend
	Listener   string         // name of the configured listener
	Peer       netip.AddrPort // the TCP peer
	Claimed    netip.AddrPort // the client's address by a trusted proxy in front
	TLSVersion uint16         // as in tls.ConnectionState; 0: no TLS
	Cipher     uint16
	ServerName string // SNI, from the client
	ALPN       string
	Program    string // the client's, by its own word: Identify
	Version    string // of it
}

// Identify takes the name and the version of the client's program from the pairs of its
// ID (RFC 2971), where they have one of them. What is longer than a record has room for is
// not kept: the client stays for as long as its session.
func (c *Client) Identify(pairs [][2]string) {
	var program, version string
	for _, p := range pairs {
		switch {
		case strings.EqualFold(p[0], "name"):
			program = p[1]
		case strings.EqualFold(p[0], "version"):
			version = p[1]
		}
	}
	if program != "" || version != "" {
		c.Program, c.Version = kept(program), kept(version)
	}
}

// kept is as much of s as shows, where it is written, whether it was longer.
func kept(s string) string { return strings.Clone(s[:min(len(s), maxName+1)]) }

// Login is one attempt to log in.
type Login struct {
	User      identity.User // zero while the name is not canonical
	Claimed   string        // the name as the client gave it; written only when User is zero
	Attempt   int           // of this connection, from 1; 0 is left out
	Mechanism string        // LOGIN, or the SASL mechanism
	Method    string        // of auth: passthrough, file, redis, http, oauth
	Backend   string
	Upstream  string        // the login name at the backend, when it is another than User
	Route     string        // where the route came from: redis, cache, snapshot, static
	RouteAge  time.Duration // how old that answer was
	Connect   string        // how the login at the backend ended, as in upstream.Result…; "" when it was not tried
	Connected time.Duration // how long that took, connecting included, waiting for limits not
	Delay     time.Duration // what was waited on purpose, of Took
	Took      time.Duration // from the whole command to its answer
}

// Session is the whole of a logged-in session, at its end.
type Session struct {
	User    identity.User
	Backend string
	Mode    string
	In      uint64 // bytes from the client, after the login
	Out     uint64 // bytes to the client, after the login
	// Commands of the client, after the login; 0 is left out: where bytes are
	// spliced nobody counts them.
	Commands uint64
	Took     time.Duration
}

// LoginAccepted records a login the backend accepted. With an error nothing was
// recorded and the caller must not let the client in (LoginRefused, AuditAway).
func (l *Log) LoginAccepted(c *Client, login *Login) error {
	return l.add(note{loginAccepted, permits, accepted}, func(b []byte) []byte {
		return appendText(login.append(c.append(b)), "result", accepted, maxName)
	})
}

// LoginRefused records a login that was refused, and why. The client may not
// have been told as much. One that was refused without a look at its credentials may be
// folded.
func (l *Log) LoginRefused(c *Client, login *Login, why Reason) error {
	if withoutVerdict(login, why) {
		if l.folds.add(c.key(loginRefused, why, login.User), fold{client: *c, login: *login}, time.Now()) {
			return nil
		}
	}
	return l.loginRefused(c, login, why, 1)
}

func (l *Log) loginRefused(c *Client, login *Login, why Reason, count uint64) error {
	return l.add(note{loginRefused, stays, why.result()}, func(b []byte) []byte {
		b = login.append(c.append(b))
		b = appendReason(appendText(b, "result", why.result(), maxName), why)
		return appendFolded(b, count)
	})
}

// SessionEnded records the end of a connection that had logged in.
func (l *Log) SessionEnded(c *Client, s *Session, why Reason) error {
	return l.add(note{kind: sessionEnded, weight: stays}, func(b []byte) []byte {
		b = c.append(b)
		b = appendText(b, "user", s.User.String(), maxUser)
		b = appendText(b, "backend", s.Backend, maxName)
		b = appendText(b, "mode", s.Mode, maxName)
		b = appendReason(b, why)
		b = appendCount(b, "bytes_in", s.In)
		b = appendCount(b, "bytes_out", s.Out)
		b = appendSome(b, "commands", s.Commands)
		return appendDuration(b, s.Took)
	})
}

// ConnectionRefused records the end of a connection that never logged in, which may be
// folded with others. detail may quote the client or the TLS library; it is
// made harmless. These yield: strangers make as many as they like.
func (l *Log) ConnectionRefused(c *Client, why Reason, detail string, took time.Duration) error {
	e := fold{client: *c, detail: detail, took: took}
	if why != InternalMistake && l.folds.add(c.key(connectionRefused, why, identity.User{}), e, time.Now()) {
		return nil
	}
	e.count = 1
	return l.connectionRefused(c, why, &e)
}

func (l *Log) connectionRefused(c *Client, why Reason, e *fold) error {
	return l.add(note{kind: connectionRefused, weight: yields}, func(b []byte) []byte {
		b = c.append(b)
		b = appendReason(b, why)
		b = appendText(b, "detail", e.detail, maxText)
		return appendFolded(appendDuration(b, e.took), e.count)
	})
}

// appendFolded appends how many events a record stands for, when it is more than its own.
func appendFolded(b []byte, count uint64) []byte {
	if count <= 1 {
		return b
	}
	return appendCount(b, "count", count)
}

// append appends what is known of the client.
func (c *Client) append(b []byte) []byte {
	b = appendText(b, "session", c.Session, maxName)
	b = appendText(b, "listener", c.Listener, maxName)
	b = appendAddress(b, "peer", c.Peer)
	b = appendAddress(b, "client", c.Claimed)
	if c.TLSVersion != 0 {
		b = appendText(b, "tls", tls.VersionName(c.TLSVersion), maxName)
		b = appendText(b, "cipher", cipherNames[c.Cipher], maxName)
		b = appendText(b, "server_name", c.ServerName, maxText)
		b = appendText(b, "alpn", c.ALPN, maxName)
	}
	b = appendText(b, "program", c.Program, maxName)
	return appendText(b, "program_version", c.Version, maxName)
}

// stamp is the last second that was written: to write it anew would be a quarter
// of the work on a record.
type stamp struct {
	second int64 // since 1970
	text   []byte
}

// start opens a record with its version, time and name.
func (s *stamp) start(b []byte, k kind) []byte {
	now := time.Now().UTC()
	if second := now.Unix(); second != s.second || s.text == nil {
		s.second, s.text = second, now.AppendFormat(s.text[:0], secondForm)
	}
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, version, 10)
	b = append(b, `,"time":"`...)
	b = append(b, s.text...)
	ms := now.Nanosecond() / 1e6
	b = append(b, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
	b = append(b, `Z","event":"`...)
	b = append(b, names[k]...)
	return append(b, '"')
}

// secondForm is timeForm without what is less than a second.
const secondForm = "2006-01-02T15:04:05"

// timeForm sorts as text.
const timeForm = "2006-01-02T15:04:05.000Z"

func (a *Login) append(b []byte) []byte {
	if a.User.IsZero() {
		b = appendText(b, "claimed", a.Claimed, maxText)
	} else {
		b = appendText(b, "user", a.User.String(), maxUser)
	}
	b = appendSome(b, "attempt", uint64(max(a.Attempt, 0)))
	b = appendText(b, "mechanism", a.Mechanism, maxName)
	b = appendText(b, "method", a.Method, maxName)
	b = appendText(b, "backend", a.Backend, maxName)
	b = appendText(b, "upstream_user", a.Upstream, maxUser)
	b = appendText(b, "route", a.Route, maxName)
	b = appendSome(b, "route_age_ms", millis(a.RouteAge))
	if a.Connect != "" {
		b = appendText(b, "upstream", among(connects, a.Connect), maxName)
		b = appendCount(b, "upstream_ms", millis(a.Connected))
	}
	b = appendSome(b, "delay_ms", millis(a.Delay))
	return appendDuration(b, a.Took)
}
