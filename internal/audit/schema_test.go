package audit

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

const schemaPath = "../../docs/AUDIT.md"

var update = flag.Bool("update", false, "write docs/AUDIT.md")

// fieldDoc documents one field of a record. Its example comes from the full records.
type fieldDoc struct{ name, kind, when, meaning string }

// always is the when of a field that every record of its event has.
const always = "always"

// Fields that several events have. Constant.
var (
	everyRecordFields = []fieldDoc{
		{"v", "number", always, "version of this schema"},
		{"time", "time", always, "UTC, to the millisecond"},
		{"event", "word", always, "the event: the left column"},
	}
	chainFields = []fieldDoc{
		{"seq", "number", "with `audit.chain`", "number of the record in its chain, from 1"},
		{"hash", "hex", "with `audit.chain`", "SHA-256 over the 32 bytes of the previous hash and this line up to `,\"hash\"`"},
	}
	clientFields = []fieldDoc{
		{"session", "text", "once there is a session", "random id; also in the ordinary log and, with `forward: id`, in the backend's log"},
		{"listener", "text", "as above", "name of the listener"},
		{"peer", "address", "as above", "the TCP peer"},
		{"client", "address", "when a trusted proxy named it", "the client's own address"},
		{"tls", "text", "with TLS", "its version"},
		{"cipher", "text", "with TLS", "the cipher suite"},
		{"server_name", "text", "with TLS, when the client sent one", "SNI"},
		{"alpn", "text", "with TLS, when negotiated", "the protocol"},
		{"program", "text", "when the client has sent it", "the program's name from `ID` (RFC 2971); [below](#the-clients-program)"},
		{"program_version", "text", "as above", "its version"},
	}
	loginFields = []fieldDoc{
		{"user", "user", "when the name is valid", "the canonical name; [below](#whose-login-it-was)"},
		{"claimed", "text", "otherwise, with `bad_name`", "the name as the client sent it; [below](#whose-login-it-was)"},
		{"attempt", "number", "when counted", "ordinal of this attempt within the connection, from 1"},
		{"mechanism", "text", "when known", "`LOGIN`, or `AUTH=` and the SASL mechanism"},
		{"method", "text", "when a method accepted the login", "the auth method: it verified the user or, with `passthrough`, left that to the backend, and `upstream` has the verdict"},
		{"backend", "text", "when routed", "name of the backend"},
		{"upstream_user", "text", "when different from `user`", "the login name at the backend"},
		{"route", "word", "when routed", "where the route came from: `redis`, `cache`, `stale`, `snapshot`, `static`, `http`"},
		{"route_age_ms", "number", "when above 0", "age of the route"},
		{"upstream", "word", "when a login at the backend was tried", "result of the login at the backend; [below](#upstream)"},
		{"upstream_ms", "number", "as above", "duration of that, including connecting, without waiting for limits of the backend"},
		{"delay_ms", "number", "when above 0", "the deliberate part of `duration_ms`: a delay for earlier failures, or for `upstream_rate` and `upstream_logins`"},
		{"duration_ms", "number", always, "from the complete command to its answer"},
	}
	routeStoreFields = []fieldDoc{
		{"subject", "text", "in a cluster", "the node; of several the first by name"},
		{"present", "number", always, "number of checked records that are present"},
		{"missing", "number", always, "number of checked records that are missing"},
	}
	muxFields = []fieldDoc{
		{"user", "user", always, "the canonical name"},
		{"backend", "text", always, "name of the backend"},
		{"mailbox", "text", "when one is selected", "in the client's own bytes"},
	}
)

// eventDoc documents one event: its meaning and fields, its fullest record, and its
// emptiest.
type eventDoc struct {
	name    string
	meaning string
	members [][]fieldDoc
	full    func(*Log)
	minimal func(*Log)
}

func fullLogin(u identity.User, claimed string) *Login {
	return &Login{
		User: u, ClaimedName: claimed, Attempt: 2, Mechanism: "AUTH=PLAIN", Method: "passthrough", Backend: "east",
		UpstreamUser: "alice", RouteSource: "cache", RouteAge: 1500 * time.Millisecond, ConnectResult: "ok", ConnectTime: 9 * time.Millisecond,
		Delay: 2 * time.Second, Duration: 2012 * time.Millisecond,
	}
}

// schema has every event, in the order of the document.
func schema(t *testing.T) []eventDoc {
	u := testkit.Must(identity.Canonicalize("alice@example.org", ""))(t)
	c := &Client{
		Session: "4d1f0c9ab2e75a83", Listener: "0.0.0.0:993", Peer: netip.MustParseAddrPort("10.0.0.9:4711"),
		Addr: netip.MustParseAddrPort("[2001:db8::7]:50000"), TLSVersion: tls.VersionTLS13,
		Cipher: tls.TLS_AES_128_GCM_SHA256, ServerName: "mail.example.org", ALPN: "imap",
		Program: "Mac OS X Mail", Version: "16.0 (3826.400.131)",
	}
	mux := &MuxEvent{User: u, Backend: "east", Mailbox: "INBOX", Expunged: 1, Arrived: 3, Duration: 40 * time.Millisecond}
	least := &MuxEvent{User: u, Backend: "east"}
	until := time.Date(2026, 5, 1, 12, 10, 0, 0, time.UTC)
	return []eventDoc{
		{"login_accepted", "A login succeeded; written before the client gets its answer. Each attempt has one record, this or the next.",
			[][]fieldDoc{clientFields, loginFields, {{"result", "word", always, "`accepted`"}}},
			func(l *Log) { _ = l.LoginAccepted(c, fullLogin(u, "")) }, func(l *Log) { _ = l.LoginAccepted(&Client{}, &Login{}) }},
		{"login_refused", "A login failed. The client's answer may have been less specific.",
			[][]fieldDoc{clientFields, loginFields, {
				{"result", "word", always, "`refused`: another password may help; `unavailable`: a later attempt may"},
				{"reason", "word", always, "the reason; [below](#reason)"},
				{"count", "number", "when folded", "number of events; the other fields are of the last one; [below](#folded-records)"}}},
			func(l *Log) { _ = l.writeLoginRefused(c, fullLogin(identity.User{}, "Alice\r\n"), event.BadName, 40) },
			func(l *Log) { _ = l.LoginRefused(&Client{}, &Login{}, event.BadName) }},
		{"session_ended", "The end of a connection after a login. Each accepted connection has one end, this or the next.",
			[][]fieldDoc{clientFields, {
				{"user", "user", always, "the canonical name"},
				{"backend", "text", always, "name of the backend"},
				{"mode", "word", always, "`splice`, `reuse`, `resume`"},
				{"reason", "word", always, "the reason; [below](#reason)"},
				{"bytes_in", "number", always, "from the client, after the login"},
				{"bytes_out", "number", always, "to the client, after the login"},
				{"commands", "number", "when counted", "of the client, after the login; not in mode `splice`; only those before `session_pinned`"},
				{"duration_ms", "number", always, "since the login"}}},
			func(l *Log) {
				_ = l.SessionEnded(c, &Session{User: u, Backend: "east", Mode: "reuse", BytesIn: 812, BytesOut: 90211, Commands: 17, Duration: time.Minute}, event.ClientLogout)
			},
			func(l *Log) {
				_ = l.SessionEnded(&Client{}, &Session{User: u, Backend: "east", Mode: "splice"}, event.ClientLogout)
			}},
		{"connection_refused", "The end of a connection without a login.",
			[][]fieldDoc{clientFields, {
				{"reason", "word", always, "the reason; [below](#reason)"},
				{"detail", "text", "when there is more detail", "text of the TLS library or of the client"},
				{"duration_ms", "number", always, "since the connection was accepted"},
				{"count", "number", "when folded", "number of events; the other fields are of the last one; [below](#folded-records)"}}},
			func(l *Log) {
				_ = l.writeConnectionRefused(event.HandshakeFailed, &refusal{client: *c, detail: "remote error: tls: bad certificate", duration: time.Second}, 40)
			},
			func(l *Log) { _ = l.ConnectionRefused(&Client{}, event.HandshakeFailed, "", 0) }},
		{"limit_hit", "A limit took effect. At most one record a minute for each limit and subject: the first at once, and later ones that count the hits since, without a client.",
			[][]fieldDoc{clientFields, {
				{"limit", "word", always, "the limit; [below](#limit)"},
				{"subject", "text", "unless there are too many subjects", "a user, an address, a network, or a backend"},
				{"result", "word", always, "`refused`, `delayed` or `slowed`"},
				{"count", "number", always, "number of hits since the last such record"}}},
			func(l *Log) {
				_ = l.LimitHit(c, &LimitHit{Limit: event.LimitConnectionRate, Subject: "2001:db8::/64", Result: event.ResultRefused})
			},
			func(l *Log) {
				_ = l.LimitHit(&Client{}, &LimitHit{Limit: event.LimitConnectionRate, Result: event.ResultRefused})
			}},
		{"ban_added", "A ban begins.",
			[][]fieldDoc{{
				{"subject", "text", always, "an address or a network"},
				{"reason", "word", always, "the reason; [below](#reason-of-a-ban)"},
				{"until", "time", "unless permanent", "when the ban ends"},
				{"by", "text", "when an operator added it", "the operator"},
				{"detail", "text", "when an operator gave one", "the operator's remark"}}},
			func(l *Log) {
				_ = l.BanAdded(&Ban{Subject: "2001:db8::/64", Reason: event.BanOperator, Until: until, Operator: "carol", Note: "complaint 17"})
			},
			func(l *Log) { _ = l.BanAdded(&Ban{Subject: "192.0.2.7", Reason: event.BanFailures}) }},
		{"ban_removed", "A ban was removed. A ban that ends at its time has no such record.",
			[][]fieldDoc{{
				{"subject", "text", always, "an address or a network"},
				{"reason", "word", always, "`operator`"},
				{"until", "time", "when it would have ended later", "when the ban would have ended"},
				{"by", "text", "when an operator removed it", "the operator"},
				{"detail", "text", "when an operator gave one", "the operator's remark"}}},
			func(l *Log) {
				_ = l.BanRemoved(&Ban{Subject: "2001:db8::/64", Reason: event.BanOperator, Until: until, Operator: "carol", Note: "cleared"})
			},
			func(l *Log) { _ = l.BanRemoved(&Ban{Subject: "192.0.2.7", Reason: event.BanOperator}) }},
		{"spray_suspected", "A few passwords seem to be tried for many users. The end of the suspicion is only in the ordinary log.",
			[][]fieldDoc{{
				{"subject", "text", "when it is a single network", "the source network"},
				{"users", "number", always, "approximate number of users tried"},
				{"addresses", "number", "when counted", "number of source addresses"},
				{"window_ms", "number", "when known", "the period"}}},
			func(l *Log) {
				_ = l.SpraySuspected(&Spray{Users: 120, Addresses: 80, Subject: "198.51.100.0/24", Window: time.Hour})
			},
			func(l *Log) { _ = l.SpraySuspected(&Spray{Users: 120}) }},
		{"address_state", "An address of a backend is used otherwise than before: its health has changed, or an operator has ordered it.",
			[][]fieldDoc{{
				{"backend", "text", always, "the backend"},
				{"address", "text", always, "host:port"},
				{"state", "word", always, "AddressState: what it is now"},
				{"was", "word", always, "AddressState: what it was"},
				{"detail", "text", "unless it is up", "why"}}},
			func(l *Log) {
				_ = l.AddressState(&AddressState{Backend: "east", Address: "mail-e1.internal:993", State: event.AddressDown, Old: event.AddressUp, Why: "health check: connect: connection refused"})
			},
			func(l *Log) {
				_ = l.AddressState(&AddressState{Backend: "east", Address: "mail-e1.internal:993", State: event.AddressUp, Old: event.AddressDown})
			}},
		{"routes_emptied", "Most of the known route records are missing from Redis: from now on no user is treated as unknown.",
			[][]fieldDoc{routeStoreFields},
			func(l *Log) { _ = l.RoutesEmptied(&RouteStore{Node: "192.0.2.9:6379", Missing: 64}) },
			func(l *Log) { _ = l.RoutesEmptied(&RouteStore{Missing: 1}) }},
		{"routes_restored", "The records are back, or an operator confirmed that their loss is intended.",
			[][]fieldDoc{routeStoreFields, {{"by", "text", "when an operator confirmed it", "the operator"}}},
			func(l *Log) {
				_ = l.RoutesRestored(&RouteStore{Node: "192.0.2.9:6379", Present: 64, Operator: "carol"})
			},
			func(l *Log) { _ = l.RoutesRestored(&RouteStore{Present: 64}) }},
		{"command", "A command of a client, with `audit.commands: writes` or `all`, in the modes that parse commands.",
			[][]fieldDoc{clientFields[:1], clientFields[2:4], {
				{"user", "user", always, "the canonical name"},
				{"backend", "text", always, "name of the backend"},
				{"command", "text", always, "the verb, with `UID` if the client sent that"},
				{"mailbox", "text", "when it names one or uses the selected one", "in the client's own bytes; not if `APPEND` has it in a literal"},
				{"to", "text", "with `COPY`, `MOVE`, `REPLACE` and `RENAME`", "the destination or new name"},
				{"messages", "number", "when it names messages by number or UID", "how many of these exist in the session's view; an upper bound while not all UIDs are known"},
				{"literals", "numbers", "when there are any", "sizes of the first 16"},
				{"literals_more", "number", "with more than 16", "number of the others"},
				{"literal_bytes", "number", "as above", "total size of all literals"},
				{"result", "word", always, "`ok`, `no`, `bad`, or `aborted`: a connection ended before the answer, or the session was pinned"},
				{"code", "text", "when the answer had one", "its response code"},
				{"duration_ms", "number", always, "from its first line to its answer, without the wait for a quota; for `IDLE`, its whole duration"}}},
			func(l *Log) {
				_ = l.Command(c, &Command{User: u, Backend: "east", Name: "UID REPLACE", IsWrite: true, Mailbox: "INBOX", Destination: "Sent", Messages: 1,
					LiteralSizes: []int64{2310}, OtherLiterals: LiteralTotal{1, 20}, Result: event.ResultOK, ResponseCode: "APPENDUID", Duration: 21 * time.Millisecond})
			},
			func(l *Log) {
				_ = l.Command(&Client{}, &Command{User: u, Backend: "east", Name: "NOOP", Result: event.ResultOK})
			}},
		{"session_attached", "In mode `resume`, a session was reattached to its backend, or reattaching failed.",
			[][]fieldDoc{clientFields, muxFields, {
				{"reason", "word", always, "`lost`: the previous connection was lost; `hold`: the same, and a command waited; `detach`: the session had released it"},
				{"result", "word", always, "[below](#result-of-session_attached)"},
				{"expunged", "number", always, "expunged messages that the client did not know of"},
				{"arrived", "number", always, "new messages that the client did not know of"},
				{"duration_ms", "number", always, "duration of the attempt"}}},
			func(l *Log) { _ = l.SessionReattached(c, mux, event.ReattachLost, event.ResultOK) },
			func(l *Log) { _ = l.SessionReattached(&Client{}, least, event.ReattachLost, event.ResultOK) }},
		{"upstream_lost", "A session lost its connection to the backend. It continues, unless `session_ended` follows.",
			[][]fieldDoc{clientFields, muxFields, {
				{"reason", "word", always, "how it was lost; [below](#reason-of-upstream_lost)"},
				{"duration_ms", "number", always, "how long the session had the connection"}}},
			func(l *Log) {
				_ = l.UpstreamLost(c, &MuxEvent{User: u, Backend: "east", Mailbox: "INBOX", Duration: time.Minute}, event.LossBye)
			},
			func(l *Log) { _ = l.UpstreamLost(&Client{}, least, event.LossBye) }},
		{"session_pinned", "From now on a session ends with its connection to the backend.",
			[][]fieldDoc{clientFields, muxFields, {{"reason", "word", always, "the reason; [below](#reason-of-session_pinned)"}}},
			func(l *Log) {
				_ = l.SessionPinned(c, &MuxEvent{User: u, Backend: "east", Mailbox: "INBOX"}, event.PinNotify)
			},
			func(l *Log) { _ = l.SessionPinned(&Client{}, least, event.PinNotify) }},
		{"started", "A gateway is ready to serve clients.",
			[][]fieldDoc{{{"version", "text", always, "its release"}}},
			func(l *Log) { _ = l.GatewayStarted("v1.2.0") }, func(l *Log) { _ = l.GatewayStarted("devel") }},
		{"stopped", "A gateway shut down cleanly. A killed gateway writes no such record.",
			[][]fieldDoc{{{"reason", "word", always, "`shutdown`"}}},
			func(l *Log) { _ = l.GatewayStopped(event.Shutdown) }, func(l *Log) { _ = l.GatewayStopped(event.Shutdown) }},
		{"config_reloaded", "On SIGHUP: the configuration is unchanged, and all reloadable files were reloaded.",
			[][]fieldDoc{{
				{"result", "word", always, "`accepted`"},
				{"reread", "text", always, "what was reloaded"}}},
			func(l *Log) { _ = l.ConfigReloaded("audit log, certificates, secrets", nil) }, func(l *Log) { _ = l.ConfigReloaded("audit log", nil) }},
		{"config_rejected", "On SIGHUP: the configuration is invalid, or has changed and needs a restart, or a file that it names is unusable. The previous content stays in use.",
			[][]fieldDoc{{
				{"result", "word", always, "`refused`"},
				{"reread", "text", always, "what was reloaded; where that failed, the last good version stays in use"},
				{"detail", "text", always, "the reason"}}},
			func(l *Log) {
				_ = l.ConfigReloaded("audit log, certificates, secrets", errors.New("/etc/imapgate.yaml has changed, which needs a restart: limits.drain_timeout"))
			},
			func(l *Log) {
				_ = l.ConfigReloaded("audit log, certificates, secrets", errors.New("mail.pem: no certificate in it"))
			}},
		{"operator_action", "An operator command.",
			[][]fieldDoc{{
				{"action", "word", always, "the command; [below](#action)"},
				{"by", "text", "when known", "the operator, or `signal`"},
				{"subject", "text", "when there is one", "the object of the command"},
				{"result", "word", always, "`accepted` or `refused`"},
				{"detail", "text", "when refused", "the reason"}}},
			func(l *Log) {
				_ = l.OperatorAction(&OperatorAction{Action: event.ActionBan, Operator: "carol", Subject: "192.0.2.7", Err: errors.New("no such address")})
			},
			func(l *Log) { _ = l.OperatorAction(&OperatorAction{Action: event.ActionReload}) }},
		{"records_lost", "This sink lost some records, and works again. Every sink gets this record, regardless of its filter.",
			[][]fieldDoc{{{"lost", "number", always, "number of records lost since the last such record"}}},
			loseRecords, loseRecords},
		{"log_opened", "With `audit.chain`, the first record of each new file.",
			[][]fieldDoc{{{"previous", "hex", "unless a chain begins here", "the hash of the last record of the previous file"}}},
			func(l *Log) { beginFile(l, chain{seq: 4711, hash: [32]byte{0xc0, 0xff, 0xee}}) }, func(l *Log) { beginFile(l, chain{}) }},
	}
}

// loseRecords and beginFile produce the two records that only sink writers write.
func loseRecords(l *Log) {
	o := l.writers[0]
	o.totalLost = 12
	o.swapBatch()
	o.pending = o.batch
}

func beginFile(l *Log, c chain) {
	record, _ := c.firstRecord()
	i := strings.Index(string(record), `,"seq"`)
	l.writers[0].pending = append(record[:i], '}', '\n')
}

// TestSchemaIsDocumented compares docs/AUDIT.md with the code.
func TestSchemaIsDocumented(t *testing.T) {
	want := renderSchema(t)
	if *update {
		if err := os.WriteFile(schemaPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaPath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/AUDIT.md is stale: run go generate ./internal/audit")
	}
}

func TestRecordsHaveWhatTheSchemaSays(t *testing.T) {
	all := schema(t)
	listed := make([]string, 0, len(all))
	for _, e := range all {
		listed = append(listed, e.name)
		known := map[string]fieldDoc{}
		for _, m := range slices.Concat(append([][]fieldDoc{everyRecordFields}, e.members...)...) {
			known[m.name] = m
		}
		full, bare := decode(t, encode(t, e.full)), decode(t, encode(t, e.minimal))
		if e.name == "login_refused" { // no single record has both user and claimed
			full["user"] = "alice@example.org"
		}
		if e.name == "login_accepted" {
			full["claimed"] = "Alice"
		}
		for name, value := range full {
			if m, ok := known[name]; !ok || !isType(m.kind, value) {
				t.Errorf("%s: %s = %v, the schema has %+v", e.name, name, value, m)
			}
		}
		for name, m := range known {
			if full[name] == nil {
				t.Errorf("%s: the fullest record has no %s", e.name, name)
			}
			if (bare[name] != nil) != (m.when == always) {
				t.Errorf("%s: %s is documented as %q, but is %v in the emptiest record", e.name, name, m.when, bare[name])
			}
		}
		if full["event"] != e.name {
			t.Errorf("%s is called %v", e.name, full["event"])
		}
		if result, ok := full["result"].(string); ok && !slices.Contains(event.Values("Result", "record"), result) {
			t.Errorf("%s: the result %s is not listed", e.name, result)
		}
	}
	slices.Sort(listed)
	if events := slices.Sorted(slices.Values(event.Values("Event"))); !slices.Equal(listed, events) {
		t.Errorf("documented: %q, existing: %q", listed, events)
	}
}

// isType reports whether a decoded value has one of the schema's types.
func isType(kind string, value any) bool {
	s, text := value.(string)
	switch kind {
	case "number":
		n, ok := value.(float64)
		return ok && n >= 0 && n == float64(uint64(n))
	case "numbers":
		_, ok := value.([]any)
		return ok
	case "time":
		_, err := time.Parse(timeLayout, s)
		return err == nil
	case "address":
		_, err := netip.ParseAddrPort(s)
		return err == nil
	case "hex":
		return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
	case "user":
		_, err := identity.Canonicalize(s, "")
		return err == nil
	case "word":
		return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz_") == ""
	}
	return text && kind == "text"
}

// renderSchema returns the text of docs/AUDIT.md.
func renderSchema(t *testing.T) string {
	var b strings.Builder
	b.WriteString(preface)
	b.WriteString("\n| event | field | type | when | example | |\n|---|---|---|---|---|---|\n")
	sample := decode(t, encode(t, schema(t)[0].full))
	sample["claimed"], sample["time"] = "Alice", "2026-05-01T12:00:00.123Z"
	sample["seq"], sample["hash"] = 4712.0, strings.Repeat("5eed", 16)
	writeRows(&b, "**every event**", everyRecordFields, sample)
	writeRows(&b, "… with `audit.chain`", chainFields, sample)
	writeRows(&b, "*client*", clientFields, sample)
	writeRows(&b, "*login*", loginFields, sample)
	for _, e := range schema(t) {
		full := decode(t, encode(t, e.full))
		fmt.Fprintf(&b, "| `%s` | | | | | %s%s |\n", e.name, e.meaning, fieldGroups(e))
		writeRows(&b, "", ownFields(e), full)
	}
	b.WriteString("\n## Closed sets\n\nAny other value is written as `internal` for a `reason` of the first table, and as `other` elsewhere.\n")
	writeReasons(&b)
	writeSet(&b, "`reason` of `session_attached`", event.Words("ReattachReason"))
	writeSet(&b, "`reason` of `upstream_lost`", event.Words("LossReason"))
	writeSet(&b, "`reason` of `session_pinned`", event.Words("PinReason"))
	writeSet(&b, "`result` of `session_attached`", event.Words("Result", "reattach"))
	writeSet(&b, "`limit`", event.Words("Limit"))
	writeSet(&b, "`reason` of a ban", event.Words("BanReason"))
	writeSet(&b, "`action`", event.Words("Action"))
	writeSet(&b, "`upstream`", event.Words("ConnectResult"))
	b.WriteString(epilogue)
	return b.String()
}

// writeReasons writes the table of the reasons, with the events that have them.
func writeReasons(b *strings.Builder) {
	b.WriteString("\n### `reason`\n\nThe second column is the result of `login_refused` for the reason; the third marks reasons of `session_ended`. Some of these, and\nall others, are reasons of `connection_refused`.\n")
	b.WriteString("\n| word | login | session | |\n|---|---|---|---|\n")
	for _, w := range event.Words("Reason") {
		login, session := "", ""
		if w.Has("refused") || w.Has("unavailable") {
			login = string(event.Reason(w.Value).LoginResult())
		}
		if w.Has("session") {
			session = "ended"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", w.Value, login, session, w.Meaning)
	}
}

// fieldGroups names the shared fields of an event.
func fieldGroups(e eventDoc) string {
	s := ""
	for _, g := range e.members {
		switch {
		case &g[0] == &clientFields[0] && len(g) == len(clientFields):
			s += " Has *client*."
		case &g[0] == &loginFields[0]:
			s += " Has *login*."
		}
	}
	return s
}

// ownFields returns the fields of an event that are not in a named group.
func ownFields(e eventDoc) []fieldDoc {
	var list []fieldDoc
	for _, g := range e.members {
		if (&g[0] != &clientFields[0] || len(g) != len(clientFields)) && &g[0] != &loginFields[0] {
			list = append(list, g...)
		}
	}
	return list
}

func writeRows(b *strings.Builder, first string, list []fieldDoc, sample map[string]any) {
	for i, m := range list {
		if i > 0 {
			first = ""
		}
		example, _ := json.Marshal(sample[m.name])
		fmt.Fprintf(b, "| %s | `%s` | %s | %s | `%s` | %s |\n", first, m.name, m.kind, m.when, example, m.meaning)
	}
}

// writeSet writes the words of one set as a table.
func writeSet(b *strings.Builder, title string, words []event.Word) {
	fmt.Fprintf(b, "\n### %s\n\n| word | |\n|---|---|\n", title)
	for _, w := range words {
		fmt.Fprintf(b, "| `%s` | %s |\n", w.Value, w.Meaning)
	}
}
