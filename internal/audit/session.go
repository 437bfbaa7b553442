package audit

import (
	"crypto/tls"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// cipherNames is tls.CipherSuiteName as a table: that function builds the whole list
// on each call.
var cipherNames = loadCipherNames()

func loadCipherNames() map[uint16]string {
	names := make(map[uint16]string)
	for _, c := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		names[c.ID] = c.Name
	}
	return names
}

// Client is what is known of a client and its connection. It is filled as the
// connection advances; records leave out zero fields.
type Client struct {
	Session    string         // random id, also given to the backend
	Listener   string         // name of the configured listener
	Peer       netip.AddrPort // the TCP peer
	Addr       netip.AddrPort // the client's own address, if a trusted proxy named it
	TLSVersion uint16         // as in tls.ConnectionState; 0: no TLS
	Cipher     uint16
	ServerName string // SNI, from the client
	ALPN       string
	Program    string // the client's own claim: SetProgram
	Version    string // version of Program
}

// SetProgram sets the name and version of the client's program from the parameters
// of its ID command (RFC 2971), if they have one of them. Longer values than a
// record can hold are cut, because the client lives as long as its session.
func (c *Client) SetProgram(params [][2]string) {
	var program, version string
	for _, p := range params {
		switch {
		case strings.EqualFold(p[0], "name"):
			program = p[1]
		case strings.EqualFold(p[0], "version"):
			version = p[1]
		}
	}
	if program != "" || version != "" {
		c.Program, c.Version = truncate(program), truncate(version)
	}
}

// truncate cuts s to one byte more than a record shows, so that the record can mark
// it as cut.
func truncate(s string) string { return strings.Clone(s[:min(len(s), maxNameBytes+1)]) }

// Login is one attempt to log in.
type Login struct {
	User          identity.User // zero while there is no canonical name
	ClaimedName   string        // the name that the client sent; recorded only if User is zero
	Attempt       int           // number within this connection, from 1; 0 is left out
	Mechanism     string        // LOGIN, or the SASL mechanism
	Method        string        // of auth: passthrough, file, redis, http, oauth
	Backend       string
	UpstreamUser  string              // the login name at the backend, if different from User
	RouteSource   string              // redis, cache, stale, snapshot, static or http
	RouteAge      time.Duration       // age of that route
	ConnectResult event.ConnectResult // "" without a login at the backend
	ConnectTime   time.Duration       // duration of that, with connecting, without waiting for limits
	Delay         time.Duration       // deliberate wait, part of Duration
	Duration      time.Duration       // from the complete command to its answer
}

// Session is a session at its end.
type Session struct {
	User     identity.User
	Backend  string
	Mode     event.Mode
	BytesIn  uint64 // bytes from the client, after the login
	BytesOut uint64 // bytes to the client, after the login
	// Commands is the number of the client's commands after the login; 0 is left out.
	// Commands of spliced sessions are not counted.
	Commands uint64
	Duration time.Duration
}

// LoginAccepted records a login that the backend accepted. After an error there is
// no record, and the caller must refuse the login (LoginRefused, AuditAway).
func (l *Log) LoginAccepted(c *Client, login *Login) error {
	return l.appendRecord(event.LoginAccepted, string(event.ResultAccepted), func(b []byte) []byte {
		return appendText(login.appendTo(c.appendTo(b)), "result", string(event.ResultAccepted), maxNameBytes)
	})
}

// LoginRefused records a refused login and its reason, which may be more detailed
// than the client's answer. A refusal before verification may be folded.
func (l *Log) LoginRefused(c *Client, login *Login, reason event.Reason) error {
	if isUnverified(login, reason) && l.foldRefusal(event.LoginRefused, reason, refusal{client: *c, login: *login}) {
		return nil
	}
	return l.writeLoginRefused(c, login, reason, 1)
}

func (l *Log) writeLoginRefused(c *Client, login *Login, reason event.Reason, count uint64) error {
	return l.appendRecord(event.LoginRefused, string(reason.LoginResult()), func(b []byte) []byte {
		b = login.appendTo(c.appendTo(b))
		b = appendReason(appendText(b, "result", string(reason.LoginResult()), maxNameBytes), reason)
		return appendAggregateCount(b, count)
	})
}

// SessionEnded records the end of a connection that had logged in.
func (l *Log) SessionEnded(c *Client, s *Session, reason event.Reason) error {
	return l.appendRecord(event.SessionEnded, "", func(b []byte) []byte {
		b = c.appendTo(b)
		b = appendText(b, "user", s.User.String(), maxUserBytes)
		b = appendText(b, "backend", s.Backend, maxNameBytes)
		b = appendText(b, "mode", string(s.Mode), maxNameBytes)
		b = appendReason(b, reason)
		b = appendCount(b, "bytes_in", s.BytesIn)
		b = appendCount(b, "bytes_out", s.BytesOut)
		b = appendNonZero(b, "commands", s.Commands)
		return appendDuration(b, s.Duration)
	})
}

// ConnectionRefused records the end of a connection that never logged in. It may be
// folded with others. detail may quote the client or the TLS library; it is
// sanitized. These records have low priority, because unauthenticated clients can
// cause any number of them.
func (l *Log) ConnectionRefused(c *Client, reason event.Reason, detail string, duration time.Duration) error {
	r := refusal{client: *c, detail: detail, duration: duration}
	if reason != event.InternalError && l.foldRefusal(event.ConnectionRefused, reason, r) {
		return nil
	}
	return l.writeConnectionRefused(reason, &r, 1)
}

func (l *Log) writeConnectionRefused(reason event.Reason, r *refusal, count uint64) error {
	return l.appendRecord(event.ConnectionRefused, "", func(b []byte) []byte {
		b = r.client.appendTo(b)
		b = appendReason(b, reason)
		b = appendText(b, "detail", r.detail, maxTextBytes)
		return appendAggregateCount(appendDuration(b, r.duration), count)
	})
}

// appendAggregateCount appends the number of events that a record stands for, if it
// is more than one.
func appendAggregateCount(b []byte, count uint64) []byte {
	if count <= 1 {
		return b
	}
	return appendCount(b, "count", count)
}

// appendTo appends the fields of the client.
func (c *Client) appendTo(b []byte) []byte {
	b = appendText(b, "session", c.Session, maxNameBytes)
	b = appendText(b, "listener", c.Listener, maxNameBytes)
	b = appendAddress(b, "peer", c.Peer)
	b = appendAddress(b, "client", c.Addr)
	if c.TLSVersion != 0 {
		b = appendText(b, "tls", tls.VersionName(c.TLSVersion), maxNameBytes)
		b = appendText(b, "cipher", cipherNames[c.Cipher], maxNameBytes)
		b = appendText(b, "server_name", c.ServerName, maxTextBytes)
		b = appendText(b, "alpn", c.ALPN, maxNameBytes)
	}
	b = appendText(b, "program", c.Program, maxNameBytes)
	return appendText(b, "program_version", c.Version, maxNameBytes)
}

// headerWriter caches the text of the last second: formatting it for each record
// would be a quarter of the work.
type headerWriter struct {
	second     int64 // since 1970
	secondText []byte
}

// appendHeader begins a record with its version, time and event.
func (h *headerWriter) appendHeader(b []byte, e event.Event) []byte {
	now := time.Now().UTC()
	if second := now.Unix(); second != h.second || h.secondText == nil {
		h.second, h.secondText = second, now.AppendFormat(h.secondText[:0], secondLayout)
	}
	b = append(b, `{"v":`...)
	b = strconv.AppendInt(b, schemaVersion, 10)
	b = append(b, `,"time":"`...)
	b = append(b, h.secondText...)
	ms := now.Nanosecond() / 1e6
	b = append(b, '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10))
	b = append(b, `Z","event":"`...)
	b = append(b, e...)
	return append(b, '"')
}

// schemaVersion is the field v of every record. It grows when a reader of the old
// form would misunderstand the new one; new events and fields do not change it.
const schemaVersion = 1

// secondLayout is timeLayout without the fraction.
const secondLayout = "2006-01-02T15:04:05"

// timeLayout sorts as text.
const timeLayout = "2006-01-02T15:04:05.000Z"

func (login *Login) appendTo(b []byte) []byte {
	if login.User.IsZero() {
		b = appendText(b, "claimed", login.ClaimedName, maxTextBytes)
	} else {
		b = appendText(b, "user", login.User.String(), maxUserBytes)
	}
	b = appendNonZero(b, "attempt", uint64(max(login.Attempt, 0)))
	b = appendText(b, "mechanism", login.Mechanism, maxNameBytes)
	b = appendText(b, "method", login.Method, maxNameBytes)
	b = appendText(b, "backend", login.Backend, maxNameBytes)
	b = appendText(b, "upstream_user", login.UpstreamUser, maxUserBytes)
	b = appendText(b, "route", login.RouteSource, maxNameBytes)
	b = appendNonZero(b, "route_age_ms", milliseconds(login.RouteAge))
	if login.ConnectResult != "" {
		b = appendText(b, "upstream", event.OrOther(login.ConnectResult), maxNameBytes)
		b = appendCount(b, "upstream_ms", milliseconds(login.ConnectTime))
	}
	b = appendNonZero(b, "delay_ms", milliseconds(login.Delay))
	return appendDuration(b, login.Duration)
}

// MuxEvent is an event of a session that may outlive its upstream.
type MuxEvent struct {
	User     identity.User
	Backend  string
	Mailbox  string // the selected mailbox; in the client's bytes
	Expunged uint32 // by a reattach: expunged messages that the client did not know of
	Arrived  uint32 // by a reattach: new messages that the client did not know of
	Duration time.Duration
}

// SessionReattached records that a session was reattached, or that reattaching
// failed.
func (l *Log) SessionReattached(c *Client, m *MuxEvent, reason event.ReattachReason, result event.Result) error {
	text := event.OrOther(result)
	return l.appendRecord(event.SessionAttached, text, func(b []byte) []byte {
		b = appendText(m.appendTo(c.appendTo(b), event.OrOther(reason)), "result", text, maxNameBytes)
		b = appendCount(b, "expunged", uint64(m.Expunged))
		b = appendCount(b, "arrived", uint64(m.Arrived))
		return appendDuration(b, m.Duration)
	})
}

// UpstreamLost records that a session lost its upstream and continues. Duration is
// the time it was attached.
func (l *Log) UpstreamLost(c *Client, m *MuxEvent, reason event.LossReason) error {
	return l.appendRecord(event.UpstreamLostEvent, "", func(b []byte) []byte {
		return appendDuration(m.appendTo(c.appendTo(b), event.OrOther(reason)), m.Duration)
	})
}

// SessionPinned records that a session will end with its upstream, and why.
func (l *Log) SessionPinned(c *Client, m *MuxEvent, reason event.PinReason) error {
	return l.appendRecord(event.SessionPinned, "", func(b []byte) []byte {
		return m.appendTo(c.appendTo(b), event.OrOther(reason))
	})
}

func (m *MuxEvent) appendTo(b []byte, reason string) []byte {
	b = appendText(b, "user", m.User.String(), maxUserBytes)
	b = appendText(b, "backend", m.Backend, maxNameBytes)
	b = appendText(b, "mailbox", m.Mailbox, maxTextBytes)
	return appendText(b, "reason", reason, maxNameBytes)
}

// CommandFilter selects the commands of clients that are recorded.
type CommandFilter string

// Values of CommandFilter.
const (
	NoCommands    CommandFilter = "none"
	WriteCommands CommandFilter = "writes" // those that may change something
	AllCommands   CommandFilter = "all"
)

// MaxLiteralSizes bounds the literals whose sizes are recorded individually.
const MaxLiteralSizes = 16

// Command is one command of a client. It never has arguments other than these, nor
// any content of messages.
type Command struct {
	User          identity.User
	Backend       string
	Name          string // such as STORE or UID FETCH
	IsWrite       bool   // it may change something
	Mailbox       string // the mailbox it names, else the selected one; in the client's bytes
	Destination   string // destination of COPY, MOVE, REPLACE and RENAME
	Messages      uint32 // number of messages it names; 0 is left out
	LiteralSizes  []int64
	OtherLiterals LiteralTotal // those not in LiteralSizes
	Result        event.Result
	ResponseCode  string // the response code of its answer
	Duration      time.Duration
}

// LiteralTotal is the number and total size of literals.
type LiteralTotal struct {
	Count uint32
	Bytes int64
}

// Commands returns which commands Command records.
func (l *Log) Commands() CommandFilter { return l.cfg.Commands }

// Command records a command if the configuration selects it. It does not allocate.
// These records are dropped first.
func (l *Log) Command(c *Client, cmd *Command) error {
	if l.cfg.Commands != AllCommands && (l.cfg.Commands != WriteCommands || !cmd.IsWrite) {
		return nil
	}
	result := event.OrOther(cmd.Result)
	return l.appendRecord(event.CommandEvent, result, func(b []byte) []byte {
		b = appendText(b, "session", c.Session, maxNameBytes)
		b = appendAddress(b, "peer", c.Peer)
		b = appendAddress(b, "client", c.Addr)
		b = appendText(b, "user", cmd.User.String(), maxUserBytes)
		b = appendText(b, "backend", cmd.Backend, maxNameBytes)
		b = appendText(b, "command", cmd.Name, maxNameBytes)
		b = appendText(b, "mailbox", cmd.Mailbox, maxTextBytes)
		b = appendText(b, "to", cmd.Destination, maxTextBytes)
		b = appendNonZero(b, "messages", uint64(cmd.Messages))
		b = appendLiterals(b, cmd.LiteralSizes, cmd.OtherLiterals)
		b = appendText(b, "result", result, maxNameBytes)
		b = appendText(b, "code", cmd.ResponseCode, maxNameBytes)
		return appendDuration(b, cmd.Duration)
	})
}

// appendLiterals appends the sizes of the first literals, the number of the others,
// and the total size.
func appendLiterals(b []byte, sizes []int64, more LiteralTotal) []byte {
	if len(sizes) == 0 {
		return b
	}
	b = append(b, `,"literals":[`...)
	total := more.Bytes
	for i, n := range sizes {
		total += n
		if i >= MaxLiteralSizes {
			more.Count++
			continue
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	b = appendNonZero(append(b, ']'), "literals_more", uint64(more.Count))
	return appendCount(b, "literal_bytes", uint64(max(total, 0)))
}
