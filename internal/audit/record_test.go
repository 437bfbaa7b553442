package audit

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
	"imapgate/internal/testkit"
)

// encode returns the record of an event, as the log would write it.
func encode(t testing.TB, event func(*Log)) []byte {
	t.Helper()
	l, o := newBufferedLog()
	event(l)
	return o.pending
}

// newBufferedLog returns a log whose records stay in the buffer of its one sink
// writer.
func newBufferedLog() (*Log, *sinkWriter) {
	l := &Log{cfg: Config{Settings: Settings{Commands: AllCommands}}, log: zap.NewNop()}
	w := &sinkWriter{auditLog: l, blocksLogins: true, wake: make(chan struct{}, 1), wakeNow: make(chan struct{}, 1)}
	w.filter, _ = newFilter(nil, nil) // matches all records
	l.writers = []*sinkWriter{w}
	return l, w
}

// decode checks the guarantees of every record and returns its members.
func decode(t testing.TB, record []byte) map[string]any {
	t.Helper()
	if len(record) > maxRecordBytes {
		t.Fatalf("record of %d bytes: %s", len(record), record)
	}
	if bytes.Count(record, []byte{'\n'}) != 1 || record[len(record)-1] != '\n' {
		t.Fatalf("not exactly one line: %q", record)
	}
	if !utf8.Valid(record) {
		t.Fatalf("not UTF-8: %q", record)
	}
	for _, r := range string(record[:len(record)-1]) {
		if unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control) || r == '\u2028' || r == '\u2029' {
			t.Fatalf("%U in %q", r, record)
		}
	}
	var members map[string]any
	if err := json.Unmarshal(record, &members); err != nil {
		t.Fatalf("%v: %s", err, record)
	}
	return members
}

func testClient() *Client {
	return &Client{
		Session: "0123456789abcdef", Listener: "0.0.0.0:993",
		Peer: netip.MustParseAddrPort("10.0.0.9:4711"), Addr: netip.MustParseAddrPort("[2001:db8::7]:50000"),
		TLSVersion: tls.VersionTLS13, Cipher: tls.TLS_AES_128_GCM_SHA256, ServerName: "mail.example.org", ALPN: "imap",
	}
}

func testLogin(t testing.TB) *Login {
	u := testkit.Must(identity.Canonicalize("alice@example.org", ""))(t)
	return &Login{User: u, Mechanism: "PLAIN", Method: "passthrough", Backend: "east", RouteSource: "redis", Duration: 12 * time.Millisecond}
}

func TestRecordsHaveTheRequiredFields(t *testing.T) {
	login := testLogin(t)
	common := map[string]any{
		"session": "0123456789abcdef", "listener": "0.0.0.0:993", "peer": "10.0.0.9:4711", "client": "[2001:db8::7]:50000",
		"tls": "TLS 1.3", "cipher": "TLS_AES_128_GCM_SHA256", "server_name": "mail.example.org", "alpn": "imap",
	}
	attempt := map[string]any{"mechanism": "PLAIN", "method": "passthrough", "backend": "east", "route": "redis", "duration_ms": 12.0}
	for name, c := range map[string]struct {
		event func(*Log)
		want  []map[string]any
	}{
		"accepted": {func(l *Log) { _ = l.LoginAccepted(testClient(), login) },
			[]map[string]any{common, attempt, {"event": "login_accepted", "user": "alice@example.org", "result": "accepted"}}},
		"refused": {func(l *Log) { _ = l.LoginRefused(testClient(), login, event.BadCredentials) },
			[]map[string]any{common, attempt, {"event": "login_refused", "user": "alice@example.org", "result": "refused", "reason": "bad_credentials"}}},
		"backend down": {func(l *Log) { _ = l.LoginRefused(testClient(), login, event.BackendDown) },
			[]map[string]any{common, attempt, {"event": "login_refused", "user": "alice@example.org", "result": "unavailable", "reason": "backend_down"}}},
		"bad name": {func(l *Log) {
			_ = l.LoginRefused(testClient(), &Login{ClaimedName: "al\x1bice", Mechanism: "LOGIN"}, event.BadName)
		},
			[]map[string]any{common, {"event": "login_refused", "claimed": `al\x1bice`, "mechanism": "LOGIN", "result": "refused", "reason": "bad_name", "duration_ms": 0.0}}},
		"session": {func(l *Log) {
			_ = l.SessionEnded(testClient(), &Session{User: login.User, Backend: "east", Mode: "splice", BytesIn: 7, BytesOut: 1 << 40, Duration: time.Hour}, event.ClientLogout)
		}, []map[string]any{common, {"event": "session_ended", "user": "alice@example.org", "backend": "east", "mode": "splice",
			"reason": "client_logout", "bytes_in": 7.0, "bytes_out": float64(1 << 40), "duration_ms": 3600000.0}}},
		"connection": {func(l *Log) { _ = l.ConnectionRefused(testClient(), event.StartTLSInjection, "", time.Second) },
			[]map[string]any{common, {"event": "connection_refused", "reason": "starttls_injection", "duration_ms": 1000.0}}},
		"bare client": {func(l *Log) {
			_ = l.ConnectionRefused(&Client{Peer: netip.MustParseAddrPort("[::ffff:192.0.2.1]:9")}, event.BadProxyHeader, "x", 0)
		}, []map[string]any{{"event": "connection_refused", "peer": "192.0.2.1:9", "reason": "bad_proxy_header", "detail": "x", "duration_ms": 0.0}}},
		"unknown reason": {func(l *Log) { _ = l.ConnectionRefused(&Client{}, "made up", "", 0) },
			[]map[string]any{{"event": "connection_refused", "reason": "internal", "duration_ms": 0.0}}},
		"attached": {func(l *Log) {
			_ = l.SessionReattached(testClient(), &MuxEvent{User: login.User, Backend: "east", Mailbox: "Sent\r\n\"",
				Expunged: 3, Arrived: 1, Duration: 40 * time.Millisecond}, event.ReattachLost, event.ResultOK)
		}, []map[string]any{common, {"event": "session_attached", "user": "alice@example.org", "backend": "east",
			"mailbox": `Sent\x0d\x0a"`, "reason": "lost", "result": "ok", "expunged": 3.0, "arrived": 1.0, "duration_ms": 40.0}}},
		"upstream lost": {func(l *Log) {
			_ = l.UpstreamLost(testClient(), &MuxEvent{User: login.User, Backend: "east", Duration: time.Minute}, event.LossBye)
		}, []map[string]any{common, {"event": "upstream_lost", "user": "alice@example.org", "backend": "east", "reason": "bye", "duration_ms": 60000.0}}},
		"pinned": {func(l *Log) {
			_ = l.SessionPinned(testClient(), &MuxEvent{User: login.User, Backend: "east", Mailbox: "INBOX"}, event.PinNotify)
		}, []map[string]any{common, {"event": "session_pinned", "user": "alice@example.org", "backend": "east", "mailbox": "INBOX", "reason": "notify"}}},
		"strange words": {func(l *Log) {
			_ = l.SessionReattached(&Client{}, &MuxEvent{User: login.User}, `x","reason":"y`, "made up")
		}, []map[string]any{{"event": "session_attached", "user": "alice@example.org", "reason": "other", "result": "other",
			"expunged": 0.0, "arrived": 0.0, "duration_ms": 0.0}}},
		"started": {func(l *Log) { _ = l.GatewayStarted("v1") }, []map[string]any{{"event": "started", "version": "v1"}}},
		"stopped": {func(l *Log) { _ = l.GatewayStopped(event.Shutdown) }, []map[string]any{{"event": "stopped", "reason": "shutdown"}}},
		"reload":  {func(l *Log) { _ = l.ConfigReloaded("audit log", nil) }, []map[string]any{{"event": "config_reloaded", "result": "accepted", "reread": "audit log"}}},
		"bad reload": {func(l *Log) { _ = l.ConfigReloaded("", errors.New("a\nb")) },
			[]map[string]any{{"event": "config_rejected", "result": "refused", "detail": `a\x0ab`}}},
	} {
		before := time.Now().Truncate(time.Millisecond)
		got := decode(t, encode(t, c.event))
		stamp, err := time.Parse("2006-01-02T15:04:05.000Z", got["time"].(string))
		if err != nil || stamp.Before(before) || stamp.After(time.Now()) {
			t.Errorf("%s: time %v, %v", name, got["time"], err)
		}
		want := map[string]any{"v": 1.0, "time": got["time"]}
		for _, part := range c.want {
			for k, v := range part {
				want[k] = v
			}
		}
		for k := range want {
			if got[k] != want[k] {
				t.Errorf("%s: %s is %#v, want %#v", name, k, got[k], want[k])
			}
		}
		for k := range got {
			if _, ok := want[k]; !ok {
				t.Errorf("%s: unexpected %s = %v", name, k, got[k])
			}
		}
	}
}

func TestUnsafeTextIsEscaped(t *testing.T) {
	for in, want := range map[string]string{
		`x"} {"event":"login_accepted","user":"admin`: `x"} {"event":"login_accepted","user":"admin`,
		"a\r\nb":                       `a\x0d\x0ab`,
		"\x1b[2J":                      `\x1b[2J`,
		"\x00\x7f":                     `\x00\x7f`,
		"\u0085\u009b":                 `\x85\x9b`,
		"a\u2028b\u2029":               `a\u{2028}b\u{2029}`,
		"\u202etxt.exe":                `\u{202e}txt.exe`,
		"\u2066x\u2069\u200e\u061c":    `\u{2066}x\u{2069}\u{200e}\u{61c}`,
		"a\u200bb\ufeff":               `a\u{200b}b\u{feff}`,
		"\xff\xc0\x80":                 `\xff\xc0\x80`,
		"\xed\xa0\x80":                 `\xed\xa0\x80`, // a surrogate half
		"\U000e0041":                   `\u{e0041}`,
		"jürgen@ex.org ☃":              "jürgen@ex.org ☃",
		`DOM\user`:                     `DOM\user`,
		strings.Repeat("a", 256):       strings.Repeat("a", 256),
		strings.Repeat("a", 257):       strings.Repeat("a", 253) + "…",
		strings.Repeat("ü", 200):       strings.Repeat("ü", 126) + "…",
		strings.Repeat("\x00", 64<<10): strings.Repeat(`\x00`, 50) + "…",
	} {
		record := encode(t, func(l *Log) { _ = l.LoginRefused(&Client{}, &Login{ClaimedName: in}, event.BadName) })
		if got := decode(t, record)["claimed"]; got != want {
			t.Errorf("%.40q became %q, want %q", in, got, want)
		}
	}
}

func TestLargestRecordStaysWithinItsBound(t *testing.T) {
	for _, unit := range []string{`"`, "\x00", "a", "\u202e", "ü", "\xff"} {
		long := strings.Repeat(unit, 1000)
		c := testClient()
		c.Session, c.Listener, c.ServerName, c.ALPN = long, long, long, long
		c.TLSVersion, c.Cipher = 0xffff, 0xffff
		login := &Login{ClaimedName: long, Mechanism: long, Method: long, Backend: long, UpstreamUser: long, RouteSource: long, Duration: 1 << 62}
		decode(t, encode(t, func(l *Log) { _ = l.LoginRefused(c, login, event.IdentityViolation) }))
		decode(t, encode(t, func(l *Log) { _ = l.ConnectionRefused(c, event.StartTLSInjection, long, 1<<62) }))
		change := &MuxEvent{User: testLogin(t).User, Backend: long, Mailbox: long, Expunged: 1<<32 - 1,
			Arrived: 1<<32 - 1, Duration: 1 << 62}
		decode(t, encode(t, func(l *Log) { _ = l.SessionReattached(c, change, event.ReattachReason(long), event.Result(long)) }))
		decode(t, encode(t, func(l *Log) { _ = l.UpstreamLost(c, change, event.LossReason(long)) }))
		decode(t, encode(t, func(l *Log) { _ = l.SessionPinned(c, change, event.PinReason(long)) }))
		sizes := make([]int64, 100)
		for i := range sizes {
			sizes[i] = 1<<62 - 1
		}
		decode(t, encode(t, func(l *Log) {
			_ = l.Command(c, &Command{User: change.User, Backend: long, Name: long, Mailbox: long, Destination: long, Messages: 1<<32 - 1,
				LiteralSizes: sizes, OtherLiterals: LiteralTotal{1<<32 - 1, 1<<62 - 1}, Result: event.Result(long), ResponseCode: long, Duration: 1 << 62})
		}))
		decode(t, encode(t, func(l *Log) {
			_ = l.LimitHit(c, &LimitHit{Limit: event.Limit(long), Subject: long, Result: event.Result(long)})
		}))
		decode(t, encode(t, func(l *Log) {
			_ = l.BanAdded(&Ban{Subject: long, Reason: event.BanReason(long), Until: time.Unix(1<<40, 0), Operator: long, Note: long})
		}))
		decode(t, encode(t, func(l *Log) {
			_ = l.OperatorAction(&OperatorAction{Action: event.Action(long), Operator: long, Subject: long, Err: errors.New(long)})
		}))
	}
}

func TestRecordCostsNoAllocation(t *testing.T) {
	l, o := newBufferedLog()
	c, login := testClient(), testLogin(t)
	change := &MuxEvent{User: login.User, Backend: "east", Mailbox: "Entw&APw-rfe"}
	cmd := testCommand(login)
	if n := testing.AllocsPerRun(100, func() {
		o.pending, o.bufferedRecords = o.pending[:0], 0
		_ = l.LoginAccepted(c, login)
		_ = l.SessionReattached(c, change, event.ReattachLost, event.ResultOK)
		_ = l.Command(c, cmd)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func testCommand(login *Login) *Command {
	return &Command{User: login.User, Backend: "east", Name: "UID STORE", IsWrite: true, Mailbox: "INBOX", Messages: 3,
		LiteralSizes: []int64{310}, Result: event.ResultOK, Duration: 3 * time.Millisecond}
}

// BenchmarkLoginAccepted measures the caller's cost: a record in the buffer.
func BenchmarkLoginAccepted(b *testing.B) {
	l, o := newBufferedLog()
	c, login := testClient(), testLogin(b)
	b.ReportAllocs()
	for b.Loop() {
		o.pending, o.bufferedRecords = o.pending[:0], 0
		_ = l.LoginAccepted(c, login)
	}
}

// BenchmarkCommand measures a session's cost per command with commands: all.
func BenchmarkCommand(b *testing.B) {
	l, o := newBufferedLog()
	c := testClient()
	cmd := testCommand(testLogin(b))
	b.ReportAllocs()
	for b.Loop() {
		o.pending, o.bufferedRecords = o.pending[:0], 0
		_ = l.Command(c, cmd)
	}
}

func FuzzAuditRecord(f *testing.F) {
	f.Add("x\"} {\"event\":\"login_accepted\"", "a\r\nb", "\x1b[2J")
	f.Add("\u202e", "\xff", strings.Repeat("\u2028", 300))
	f.Fuzz(func(t *testing.T, user, server, detail string) {
		c := testClient()
		c.ServerName = server
		c.SetProgram([][2]string{{"VERSION", server}, {"Name", detail}})
		got := decode(t, encode(t, func(l *Log) { _ = l.LoginRefused(c, &Login{ClaimedName: user, Mechanism: detail}, event.BadName) }))
		checkField(t, got["claimed"], user, maxTextBytes)
		checkField(t, got["mechanism"], detail, maxNameBytes)
		checkField(t, got["server_name"], server, maxTextBytes)
		checkField(t, got["program"], detail, maxNameBytes)
		checkField(t, got["program_version"], server, maxNameBytes)
		got = decode(t, encode(t, func(l *Log) { _ = l.ConnectionRefused(c, event.BadProxyHeader, detail, 0) }))
		checkField(t, got["detail"], detail, maxTextBytes)
		got = decode(t, encode(t, func(l *Log) { _ = l.SessionPinned(c, &MuxEvent{Mailbox: detail}, event.PinReason(user)) }))
		checkField(t, got["mailbox"], detail, maxTextBytes)
		fuzzOtherEvents(t, user, server, detail)
	})
}

// fuzzOtherEvents puts outside text into the events of limits, operators and
// commands, and checks their chain.
func fuzzOtherEvents(t *testing.T, user, words, more string) {
	ban := &Ban{Subject: user, Reason: event.BanReason(words), Operator: words, Note: more}
	action := &OperatorAction{Action: event.Action(words), Operator: words, Subject: user, Err: errors.New(more)}
	cmd := &Command{Name: words, Mailbox: user, Destination: user, ResponseCode: more, Result: event.Result(more), LiteralSizes: []int64{int64(len(more))}}
	hit := &LimitHit{Limit: event.Limit(words), Subject: user, Result: event.Result(more)}
	var chained chain
	for _, event := range []struct {
		write  func(*Log)
		fields map[string]string
		bounds map[string]int
	}{
		{func(l *Log) { _ = l.BanAdded(ban) }, map[string]string{"subject": user, "by": words, "detail": more},
			map[string]int{"subject": maxUserBytes, "by": maxNameBytes, "detail": maxTextBytes}},
		{func(l *Log) { _ = l.OperatorAction(action) }, map[string]string{"subject": user, "by": words, "detail": more},
			map[string]int{"subject": maxUserBytes, "by": maxNameBytes, "detail": maxTextBytes}},
		{func(l *Log) { _ = l.Command(&Client{Session: more}, cmd) },
			map[string]string{"session": more, "command": words, "mailbox": user, "to": user, "code": more},
			map[string]int{"session": maxNameBytes, "command": maxNameBytes, "mailbox": maxTextBytes, "to": maxTextBytes, "code": maxNameBytes}},
		{func(l *Log) { _ = l.LimitHit(&Client{}, hit) }, map[string]string{"subject": user}, map[string]int{"subject": maxUserBytes}},
		{func(l *Log) { _ = l.SpraySuspected(&Spray{Subject: user}) }, map[string]string{"subject": user}, map[string]int{"subject": maxUserBytes}},
		{func(l *Log) { _ = l.RoutesRestored(&RouteStore{Node: user, Operator: words}) }, map[string]string{"subject": user, "by": words},
			map[string]int{"subject": maxUserBytes, "by": maxNameBytes}},
		{func(l *Log) { _ = l.ConfigReloaded("", errors.New(more)) }, map[string]string{"detail": more}, map[string]int{"detail": maxTextBytes}},
	} {
		record := encode(t, event.write)
		got := decode(t, record)
		for key, in := range event.fields {
			checkField(t, got[key], in, event.bounds[key])
		}
		before := chained
		line := chained.appendRecord(nil, record)
		if l, ok := parseChained(line[:len(line)-1]); !ok || before.sum(l.hashed) != l.hash || l.hash != chained.hash {
			t.Fatalf("the hash of %s cannot be parsed", line)
		}
	}
}

// checkField checks that got is the sanitized form of in, computed here in another
// way: as a list of pieces, each with its length in JSON.
func checkField(t *testing.T, got any, in string, bound int) {
	t.Helper()
	if in == "" {
		if got != nil {
			t.Fatalf("an empty field became %q", got)
		}
		return
	}
	var whole, short string
	length := 0
	for i, r := range in {
		piece, size := string(r), 0
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(in[i:], piece), unicode.IsControl(r):
			b := in[i]
			if unicode.IsControl(r) {
				b = byte(r)
			}
			piece, size = fmt.Sprintf(`\x%02x`, b), 5
		case sanitize.IsUnsafe(r):
			piece = fmt.Sprintf(`\u{%x}`, r)
			size = len(piece) + 1
		case r == '"', r == '\\':
			size = 2
		default:
			size = len(piece)
		}
		length += size
		whole += piece
		if length <= bound-len(ellipsis) {
			short = whole
		}
		if length > bound {
			whole = short + ellipsis
			break
		}
	}
	if got != whole {
		t.Fatalf("%q became %q, want %q", in, got, whole)
	}
}
