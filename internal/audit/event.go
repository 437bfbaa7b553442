package audit

import (
	"crypto/tls"
	"net/netip"
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
}

// Login is one attempt to log in.
type Login struct {
	User      identity.User // zero while the name is not canonical
	Claimed   string        // the name as the client gave it; written only when User is zero
	Mechanism string        // LOGIN, or the SASL mechanism
	Method    string        // of auth: passthrough, file, redis
	Backend   string
	Upstream  string // the login name at the backend, when it is another than User
	Route     string // where the route came from: redis, cache, snapshot, static
	Took      time.Duration
}

// Session is the whole of a logged-in session, at its end.
type Session struct {
	User    identity.User
	Backend string
	Mode    string
	In      uint64 // bytes from the client, after the login
	Out     uint64 // bytes to the client, after the login
	Took    time.Duration
}

// LoginAccepted records a login the backend accepted. With an error nothing was
// recorded and the caller must not let the client in (LoginRefused, AuditAway).
func (l *Log) LoginAccepted(c *Client, login *Login) error {
	return l.addIfReady(func(b []byte) []byte {
		b = begin(b, "login_accepted", c)
		b = login.append(b)
		return append(b, `,"result":"accepted"`...)
	})
}

// LoginRefused records a login that was refused, and why. The client may not
// have been told as much.
func (l *Log) LoginRefused(c *Client, login *Login, why Reason) error {
	return l.add(func(b []byte) []byte {
		b = begin(b, "login_refused", c)
		b = login.append(b)
		b = append(b, `,"result":"`...)
		b = append(b, why.result()...)
		b = append(b, '"')
		return appendReason(b, why)
	})
}

// SessionEnded records the end of a connection that had logged in.
func (l *Log) SessionEnded(c *Client, s *Session, why Reason) error {
	return l.add(func(b []byte) []byte {
		b = begin(b, "session_ended", c)
		b = appendText(b, "user", s.User.String(), maxUser)
		b = appendText(b, "backend", s.Backend, maxName)
		b = appendText(b, "mode", s.Mode, maxName)
		b = appendReason(b, why)
		b = appendCount(b, "bytes_in", s.In)
		b = appendCount(b, "bytes_out", s.Out)
		return appendDuration(b, s.Took)
	})
}

// ConnectionRefused records the end of a connection that never logged in.
// detail may quote the client or the TLS library; it is made harmless.
func (l *Log) ConnectionRefused(c *Client, why Reason, detail string, took time.Duration) error {
	return l.add(func(b []byte) []byte {
		b = begin(b, "connection_refused", c)
		b = appendReason(b, why)
		b = appendText(b, "detail", detail, maxText)
		return appendDuration(b, took)
	})
}

// Started records that a gateway began to serve.
func (l *Log) Started(version string) error {
	return l.add(func(b []byte) []byte {
		b = begin(b, "started", &Client{})
		return appendText(b, "version", version, maxName)
	})
}

// Stopped records that a gateway ended in good order, and why.
func (l *Log) Stopped(why Reason) error {
	return l.add(func(b []byte) []byte {
		return appendReason(begin(b, "stopped", &Client{}), why)
	})
}

// Reloaded records a reload; err is why it was refused, or nil.
func (l *Log) Reloaded(err error) error {
	return l.add(func(b []byte) []byte {
		b = begin(b, "config_reloaded", &Client{})
		if err == nil {
			return append(b, `,"result":"accepted"`...)
		}
		b = append(b, `,"result":"refused"`...)
		return appendText(b, "detail", err.Error(), maxText)
	})
}

// begin opens a record with its time, name and client.
func begin(b []byte, event string, c *Client) []byte {
	b = append(b, `{"time":"`...)
	b = time.Now().UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, `","event":"`...)
	b = append(b, event...)
	b = append(b, '"')
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
	return b
}

func (a *Login) append(b []byte) []byte {
	if a.User.IsZero() {
		b = appendText(b, "claimed", a.Claimed, maxText)
	} else {
		b = appendText(b, "user", a.User.String(), maxUser)
	}
	b = appendText(b, "mechanism", a.Mechanism, maxName)
	b = appendText(b, "method", a.Method, maxName)
	b = appendText(b, "backend", a.Backend, maxName)
	b = appendText(b, "upstream_user", a.Upstream, maxUser)
	b = appendText(b, "route", a.Route, maxName)
	return appendDuration(b, a.Took)
}
