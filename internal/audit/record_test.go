package audit

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// encode gives the one record that event makes, as the log would write it.
func encode(t testing.TB, event func(*Log)) []byte {
	t.Helper()
	l, o := unwritten()
	event(l)
	return o.pending
}

// unwritten is a log whose records stay in the buffer of its one outlet.
func unwritten() (*Log, *outlet) {
	l := &Log{cfg: Config{Commands: AllCommands}, log: zap.NewNop()}
	o := &outlet{of: l, block: true, wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
	o.only, _ = newFilter(nil, nil) // wants all
	l.outlets = []*outlet{o}
	return l, o
}

// decode checks what every record promises and gives its members.
func decode(t testing.TB, record []byte) map[string]any {
	t.Helper()
	if len(record) > maxRecord {
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
		Peer: netip.MustParseAddrPort("10.0.0.9:4711"), Claimed: netip.MustParseAddrPort("[2001:db8::7]:50000"),
		TLSVersion: tls.VersionTLS13, Cipher: tls.TLS_AES_128_GCM_SHA256, ServerName: "mail.example.org", ALPN: "imap",
	}
}

func testLogin(t testing.TB) *Login {
	u, err := identity.Canon("alice@example.org", "")
	if err != nil {
		t.Fatal(err)
	}
	return &Login{User: u, Mechanism: "PLAIN", Method: "passthrough", Backend: "east", Route: "redis", Took: 12 * time.Millisecond}
}

func TestRecordsHoldWhatAnOperatorMustProve(t *testing.T) {
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
		"refused": {func(l *Log) { _ = l.LoginRefused(testClient(), login, BadCredentials) },
			[]map[string]any{common, attempt, {"event": "login_refused", "user": "alice@example.org", "result": "refused", "reason": "bad_credentials"}}},
		"backend down": {func(l *Log) { _ = l.LoginRefused(testClient(), login, BackendDown) },
			[]map[string]any{common, attempt, {"event": "login_refused", "user": "alice@example.org", "result": "unavailable", "reason": "backend_down"}}},
		"bad name": {func(l *Log) {
			_ = l.LoginRefused(testClient(), &Login{Claimed: "al\x1bice", Mechanism: "LOGIN"}, BadName)
		},
			[]map[string]any{common, {"event": "login_refused", "claimed": `al\x1bice`, "mechanism": "LOGIN", "result": "refused", "reason": "bad_name", "duration_ms": 0.0}}},
		"session": {func(l *Log) {
			_ = l.SessionEnded(testClient(), &Session{User: login.User, Backend: "east", Mode: "splice", In: 7, Out: 1 << 40, Took: time.Hour}, ClientLogout)
		}, []map[string]any{common, {"event": "session_ended", "user": "alice@example.org", "backend": "east", "mode": "splice",
			"reason": "client_logout", "bytes_in": 7.0, "bytes_out": float64(1 << 40), "duration_ms": 3600000.0}}},
		"connection": {func(l *Log) { _ = l.ConnectionRefused(testClient(), StartTLSInjection, "", time.Second) },
			[]map[string]any{common, {"event": "connection_refused", "reason": "starttls_injection", "duration_ms": 1000.0}}},
		"bare client": {func(l *Log) {
			_ = l.ConnectionRefused(&Client{Peer: netip.MustParseAddrPort("[::ffff:192.0.2.1]:9")}, BadProxyHeader, "x", 0)
		}, []map[string]any{{"event": "connection_refused", "peer": "192.0.2.1:9", "reason": "bad_proxy_header", "detail": "x", "duration_ms": 0.0}}},
		"unknown reason": {func(l *Log) { _ = l.ConnectionRefused(&Client{}, "made up", "", 0) },
			[]map[string]any{{"event": "connection_refused", "reason": "internal", "duration_ms": 0.0}}},
		"attached": {func(l *Log) {
			_ = l.Attached(testClient(), &Mux{User: login.User, Backend: "east", Mailbox: "Sent\r\n\"", Why: AfterLoss, Result: AttachOK,
				Expunged: 3, Arrived: 1, Took: 40 * time.Millisecond})
		}, []map[string]any{common, {"event": "session_attached", "user": "alice@example.org", "backend": "east",
			"mailbox": `Sent\x0d\x0a"`, "reason": "lost", "result": "ok", "expunged": 3.0, "arrived": 1.0, "duration_ms": 40.0}}},
		"upstream lost": {func(l *Log) {
			_ = l.UpstreamLost(testClient(), &Mux{User: login.User, Backend: "east", Why: LostBye, Took: time.Minute})
		}, []map[string]any{common, {"event": "upstream_lost", "user": "alice@example.org", "backend": "east", "reason": "bye", "duration_ms": 60000.0}}},
		"pinned": {func(l *Log) {
			_ = l.Pinned(testClient(), &Mux{User: login.User, Backend: "east", Mailbox: "INBOX", Why: PinNotify})
		}, []map[string]any{common, {"event": "session_pinned", "user": "alice@example.org", "backend": "east", "mailbox": "INBOX", "reason": "notify"}}},
		"strange words": {func(l *Log) {
			_ = l.Attached(&Client{}, &Mux{User: login.User, Why: `x","reason":"y`, Result: "made up"})
		}, []map[string]any{{"event": "session_attached", "user": "alice@example.org", "reason": "other", "result": "other",
			"expunged": 0.0, "arrived": 0.0, "duration_ms": 0.0}}},
		"started": {func(l *Log) { _ = l.Started("v1") }, []map[string]any{{"event": "started", "version": "v1"}}},
		"stopped": {func(l *Log) { _ = l.Stopped(GatewayStopping) }, []map[string]any{{"event": "stopped", "reason": "shutdown"}}},
		"reload":  {func(l *Log) { _ = l.Reloaded("audit log", nil) }, []map[string]any{{"event": "config_reloaded", "result": "accepted", "reread": "audit log"}}},
		"bad reload": {func(l *Log) { _ = l.Reloaded("", errors.New("a\nb")) },
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
				t.Errorf("%s: %s = %v is too much", name, k, got[k])
			}
		}
	}
}

func TestHostileTextBecomesVisible(t *testing.T) {
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
		record := encode(t, func(l *Log) { _ = l.LoginRefused(&Client{}, &Login{Claimed: in}, BadName) })
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
		login := &Login{Claimed: long, Mechanism: long, Method: long, Backend: long, Upstream: long, Route: long, Took: 1 << 62}
		decode(t, encode(t, func(l *Log) { _ = l.LoginRefused(c, login, IdentityMismatch) }))
		decode(t, encode(t, func(l *Log) { _ = l.ConnectionRefused(c, StartTLSInjection, long, 1<<62) }))
		change := &Mux{User: testLogin(t).User, Backend: long, Mailbox: long, Why: Why(long), Result: Result(long), Expunged: 1<<32 - 1,
			Arrived: 1<<32 - 1, Took: 1 << 62}
		decode(t, encode(t, func(l *Log) { _ = l.Attached(c, change) }))
		decode(t, encode(t, func(l *Log) { _ = l.UpstreamLost(c, change) }))
		decode(t, encode(t, func(l *Log) { _ = l.Pinned(c, change) }))
		sizes := make([]int64, 100)
		for i := range sizes {
			sizes[i] = 1<<62 - 1
		}
		decode(t, encode(t, func(l *Log) {
			_ = l.Command(c, &Command{User: change.User, Backend: long, Verb: long, Mailbox: long, To: long, Messages: 1<<32 - 1,
				Literals: sizes, More: Literals{1<<32 - 1, 1<<62 - 1}, Result: CommandResult(long), Code: long, Took: 1 << 62})
		}))
		decode(t, encode(t, func(l *Log) { _ = l.LimitHit(c, &Hit{Limit: Limit(long), Subject: long, Measure: Measure(long)}) }))
		decode(t, encode(t, func(l *Log) {
			_ = l.BanAdded(&Ban{Subject: long, Why: Cause(long), Until: time.Unix(1<<40, 0), By: long, Note: long})
		}))
		decode(t, encode(t, func(l *Log) {
			_ = l.OperatorAction(&Operator{Action: Action(long), By: long, Subject: long, Err: errors.New(long)})
		}))
	}
}

func TestRecordCostsNoAllocation(t *testing.T) {
	l, o := unwritten()
	c, login := testClient(), testLogin(t)
	change := &Mux{User: login.User, Backend: "east", Mailbox: "Entw&APw-rfe", Why: AfterLoss, Result: AttachOK}
	done := testCommand(login)
	if n := testing.AllocsPerRun(100, func() {
		o.pending, o.waiting = o.pending[:0], 0
		_ = l.LoginAccepted(c, login)
		_ = l.Attached(c, change)
		_ = l.Command(c, done)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func testCommand(login *Login) *Command {
	return &Command{User: login.User, Backend: "east", Verb: "UID STORE", Writes: true, Mailbox: "INBOX", Messages: 3,
		Literals: []int64{310}, Result: CommandOK, Took: 3 * time.Millisecond}
}

// BenchmarkLoginAccepted is what a caller pays: the record in the buffer.
func BenchmarkLoginAccepted(b *testing.B) {
	l, o := unwritten()
	c, login := testClient(), testLogin(b)
	b.ReportAllocs()
	for b.Loop() {
		o.pending, o.waiting = o.pending[:0], 0
		_ = l.LoginAccepted(c, login)
	}
}

// BenchmarkCommand is what a session pays for each command with commands: all.
func BenchmarkCommand(b *testing.B) {
	l, o := unwritten()
	c := testClient()
	cmd := testCommand(testLogin(b))
	b.ReportAllocs()
	for b.Loop() {
		o.pending, o.waiting = o.pending[:0], 0
		_ = l.Command(c, cmd)
	}
}

func FuzzAuditRecord(f *testing.F) {
	f.Add("x\"} {\"event\":\"login_accepted\"", "a\r\nb", "\x1b[2J")
	f.Add("\u202e", "\xff", strings.Repeat("\u2028", 300))
	f.Fuzz(func(t *testing.T, user, server, detail string) {
		c := testClient()
		c.ServerName = server
		c.Identify([][2]string{{"VERSION", server}, {"Name", detail}})
		got := decode(t, encode(t, func(l *Log) { _ = l.LoginRefused(c, &Login{Claimed: user, Mechanism: detail}, BadName) }))
		same(t, got["claimed"], user, maxText)
		same(t, got["mechanism"], detail, maxName)
		same(t, got["server_name"], server, maxText)
		same(t, got["program"], detail, maxName)
		same(t, got["program_version"], server, maxName)
		got = decode(t, encode(t, func(l *Log) { _ = l.ConnectionRefused(c, BadProxyHeader, detail, 0) }))
		same(t, got["detail"], detail, maxText)
		got = decode(t, encode(t, func(l *Log) { _ = l.Pinned(c, &Mux{Mailbox: detail, Why: Why(user)}) }))
		same(t, got["mailbox"], detail, maxText)
		fuzzRest(t, user, server, detail)
	})
}

// fuzzRest puts text from outside into the events of limits, operators and
// commands, and into those that a chain is over.
func fuzzRest(t *testing.T, who, words, more string) {
	ban := &Ban{Subject: who, Why: Cause(words), By: words, Note: more}
	action := &Operator{Action: Action(words), By: words, Subject: who, Err: errors.New(more)}
	cmd := &Command{Verb: words, Mailbox: who, To: who, Code: more, Result: CommandResult(more), Literals: []int64{int64(len(more))}}
	hit := &Hit{Limit: Limit(words), Subject: who, Measure: Measure(more)}
	var chained chain
	for _, event := range []struct {
		write  func(*Log)
		fields map[string]string
		bounds map[string]int
	}{
		{func(l *Log) { _ = l.BanAdded(ban) }, map[string]string{"subject": who, "by": words, "detail": more},
			map[string]int{"subject": maxUser, "by": maxName, "detail": maxText}},
		{func(l *Log) { _ = l.OperatorAction(action) }, map[string]string{"subject": who, "by": words, "detail": more},
			map[string]int{"subject": maxUser, "by": maxName, "detail": maxText}},
		{func(l *Log) { _ = l.Command(&Client{Session: more}, cmd) },
			map[string]string{"session": more, "command": words, "mailbox": who, "to": who, "code": more},
			map[string]int{"session": maxName, "command": maxName, "mailbox": maxText, "to": maxText, "code": maxName}},
		{func(l *Log) { _ = l.LimitHit(&Client{}, hit) }, map[string]string{"subject": who}, map[string]int{"subject": maxUser}},
		{func(l *Log) { _ = l.SpraySuspected(&Spray{Subject: who}) }, map[string]string{"subject": who}, map[string]int{"subject": maxUser}},
		{func(l *Log) { _ = l.RoutesRestored(&Store{Node: who, By: words}) }, map[string]string{"subject": who, "by": words},
			map[string]int{"subject": maxUser, "by": maxName}},
		{func(l *Log) { _ = l.Reloaded("", errors.New(more)) }, map[string]string{"detail": more}, map[string]int{"detail": maxText}},
	} {
		record := encode(t, event.write)
		got := decode(t, record)
		for key, in := range event.fields {
			same(t, got[key], in, event.bounds[key])
		}
		before := chained
		line := chained.add(nil, record)
		if l, ok := linkOf(line[:len(line)-1]); !ok || before.over(l.text) != l.hash || l.hash != chained.hash {
			t.Fatalf("the link of %s is not found again", line)
		}
	}
}

// same checks that got is the cleaned form of in, made here a second way: as a
// list of pieces, each with its length inside JSON.
func same(t *testing.T, got any, in string, bound int) {
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
		case hostile(r):
			piece = fmt.Sprintf(`\u{%x}`, r)
			size = len(piece) + 1
		case r == '"', r == '\\':
			size = 2
		default:
			size = len(piece)
		}
		length += size
		whole += piece
		if length <= bound-len(cut) {
			short = whole
		}
		if length > bound {
			whole = short + cut
			break
		}
	}
	if got != whole {
		t.Fatalf("%q became %q, want %q", in, got, whole)
	}
}

func TestEveryWordOfTheClosedSetsIsKnown(t *testing.T) {
	everyConstantIsKnown(t, "reason.go", "Reason", len(reasons))
	everyConstantIsKnown(t, "mux.go", "Why", len(whys))
	everyConstantIsKnown(t, "mux.go", "Result", len(results))
	everyConstantIsKnown(t, "command.go", "CommandResult", len(commandResults))
	everyConstantIsKnown(t, "gateway.go", "Action", len(actions))
	everyConstantIsKnown(t, "limits.go", "Limit", len(limits))
	everyConstantIsKnown(t, "limits.go", "Cause", len(causes))
}

// everyConstantIsKnown reads the constants of one type from the source: the
// language itself cannot list them.
func everyConstantIsKnown(t *testing.T, file, kind string, want int) {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]func(string) bool{
		"Reason": func(s string) bool { return Reason(s).Known() },
		"Why":    func(s string) bool { return Why(s).Known() },
		"Result": func(s string) bool { return Result(s).Known() },
		"Action": func(s string) bool { return Action(s).Known() },
		"Limit":  func(s string) bool { return Limit(s).Known() },
		"Cause":  func(s string) bool { return Cause(s).Known() },

		"CommandResult": func(s string) bool { return CommandResult(s).Known() },
	}[kind]
	count := 0
	for line := range strings.Lines(string(source)) {
		if name, value, ok := strings.Cut(line, " "+kind+` = "`); ok {
			value, _, _ = strings.Cut(value, `"`)
			count++
			if !known(value) {
				t.Errorf("%s (%s) is not in the table", strings.TrimSpace(name), value)
			}
		}
	}
	if count == 0 || count != want {
		t.Errorf("%s: %d constants, %d in the table", kind, count, want)
	}
}
