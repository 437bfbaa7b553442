package audit

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"imapgate/internal/identity"
)

const schemaPath = "../../docs/AUDIT.md"

var update = flag.Bool("update", false, "write docs/AUDIT.md")

// fieldDoc is one field of a record. Its example is the one in full records.
type fieldDoc struct{ name, kind, when, meaning string }

// always is the when of a member that no record of its event is without.
const always = "always"

// Members that several events have. Constant.
var (
	everyRecordFields = []fieldDoc{
		{"v", "number", always, "version of this schema"},
		{"time", "time", always, "UTC, to the millisecond"},
		{"event", "word", always, "what happened: the left column"},
	}
	chainFields = []fieldDoc{
		{"seq", "number", "with `audit.chain`", "number of the record in its chain, from 1"},
		{"hash", "hex", "with `audit.chain`", "SHA-256 over the 32 bytes of the hash before and this line up to `,\"hash\"`"},
	}
	clientFields = []fieldDoc{
		{"session", "text", "once there is a session", "random id; the ordinary log and, with `forward: id`, the backend have it too"},
		{"listener", "text", "as above", "name of the listener"},
		{"peer", "address", "as above", "the TCP peer"},
		{"client", "address", "when a trusted proxy named it", "the client's own address"},
		{"tls", "text", "with TLS", "its version"},
		{"cipher", "text", "with TLS", "the cipher suite"},
		{"server_name", "text", "with TLS, when the client named one", "SNI"},
		{"alpn", "text", "with TLS, when agreed upon", "the protocol"},
		{"program", "text", "when the client has said it", "its name by its `ID` (RFC 2971); [below](#the-clients-program)"},
		{"program_version", "text", "as above", "its version"},
	}
	loginFields = []fieldDoc{
		{"user", "user", "when the name can be one", "the canonical name; [below](#whose-login-it-was)"},
		{"claimed", "text", "else, with `bad_name`", "the name as the client gave it; [below](#whose-login-it-was)"},
		{"attempt", "number", "when counted", "which attempt of the connection it is, from 1"},
		{"mechanism", "text", "when known", "`LOGIN`, or `AUTH=` and the SASL mechanism"},
		{"method", "text", "when one did not refuse", "auth method that took the login on: it vouches for the user, or, with `passthrough`, leaves the credentials to the backend, and `upstream` has the verdict"},
		{"backend", "text", "when routed", "name of the backend"},
		{"upstream_user", "text", "when it is another than `user`", "the login name at the backend"},
		{"route", "word", "when routed", "where the route came from: `redis`, `cache`, `stale`, `snapshot`, `static`, `http`"},
		{"route_age_ms", "number", "when above 0", "how old the route was"},
		{"upstream", "word", "when the backend was asked", "how the login there ended; [below](#upstream)"},
		{"upstream_ms", "number", "as above", "how long that took, connecting included, and without waiting for limits of the backend"},
		{"delay_ms", "number", "when above 0", "how much of `duration_ms` was waited on purpose: for what had failed before, or for `upstream_rate` and `upstream_logins`"},
		{"duration_ms", "number", always, "from the whole command to its answer"},
	}
	routeStoreFields = []fieldDoc{
		{"subject", "text", "in a cluster", "the node; of several the first by name"},
		{"present", "number", always, "how many of the records that were looked for are there"},
		{"missing", "number", always, "how many are not"},
	}
	muxFields = []fieldDoc{
		{"user", "user", always, "the canonical name"},
		{"backend", "text", always, "name of the backend"},
		{"mailbox", "text", "when one is selected", "in the client's own bytes"},
	}
)

// eventDoc is one event: what it means and has, its fullest record, and its
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

// schema is every event. The order is that of the document.
func schema(t *testing.T) []eventDoc {
	u, err := identity.Canonicalize("alice@example.org", "")
	if err != nil {
		t.Fatal(err)
	}
	c := &Client{
		Session: "4d1f0c9ab2e75a83", Listener: "0.0.0.0:993", Peer: netip.MustParseAddrPort("10.0.0.9:4711"),
		Addr: netip.MustParseAddrPort("[2001:db8::7]:50000"), TLSVersion: tls.VersionTLS13,
		Cipher: tls.TLS_AES_128_GCM_SHA256, ServerName: "mail.example.org", ALPN: "imap",
		Program: "Mac OS X Mail", Version: "16.0 (3826.400.131)",
	}
	mux := &MuxEvent{User: u, Backend: "east", Mailbox: "INBOX", Reason: AfterLoss, Result: AttachOK, Expunged: 1, Arrived: 3, Duration: 40 * time.Millisecond}
	least := &MuxEvent{User: u, Backend: "east"}
	until := time.Date(2026, 5, 1, 12, 10, 0, 0, time.UTC)
	return []eventDoc{
		{"login_accepted", "A login succeeded; it is written before the client is told. Each attempt has one record, this or the next.",
			[][]fieldDoc{clientFields, loginFields, {{"result", "word", always, "`accepted`"}}},
			func(l *Log) { _ = l.LoginAccepted(c, fullLogin(u, "")) }, func(l *Log) { _ = l.LoginAccepted(&Client{}, &Login{}) }},
		{"login_refused", "A login failed. The client may have been told less.",
			[][]fieldDoc{clientFields, loginFields, {
				{"result", "word", always, "`refused`: another password may help; `unavailable`: another time may"},
				{"reason", "word", always, "why; [below](#reason)"},
				{"count", "number", "when folded", "how many it stands for, the last of which it shows; [below](#folded-records)"}}},
			func(l *Log) { _ = l.writeLoginRefused(c, fullLogin(identity.User{}, "Alice\r\n"), BadName, 40) },
			func(l *Log) { _ = l.LoginRefused(&Client{}, &Login{}, BadName) }},
		{"session_ended", "The end of a connection that had logged in. Each accepted connection has one end, this or the next.",
			[][]fieldDoc{clientFields, {
				{"user", "user", always, "the canonical name"},
				{"backend", "text", always, "name of the backend"},
				{"mode", "word", always, "`splice`, `reuse`, `resume`"},
				{"reason", "word", always, "why; [below](#reason)"},
				{"bytes_in", "number", always, "from the client, after the login"},
				{"bytes_out", "number", always, "to the client, after the login"},
				{"commands", "number", "when counted", "of the client, after the login; not in mode `splice`, and those before `session_pinned` alone"},
				{"duration_ms", "number", always, "since the login"}}},
			func(l *Log) {
				_ = l.SessionEnded(c, &Session{User: u, Backend: "east", Mode: "reuse", BytesIn: 812, BytesOut: 90211, Commands: 17, Duration: time.Minute}, ClientLogout)
			},
			func(l *Log) {
				_ = l.SessionEnded(&Client{}, &Session{User: u, Backend: "east", Mode: "splice"}, ClientLogout)
			}},
		{"connection_refused", "The end of a connection that never logged in.",
			[][]fieldDoc{clientFields, {
				{"reason", "word", always, "why; [below](#reason)"},
				{"detail", "text", "when there is more to say", "words of the TLS library, or of the client"},
				{"duration_ms", "number", always, "since the connection was accepted"},
				{"count", "number", "when folded", "how many it stands for, the last of which it shows; [below](#folded-records)"}}},
			func(l *Log) {
				_ = l.writeConnectionRefused(c, HandshakeFailed, &aggregate{detail: "remote error: tls: bad certificate", duration: time.Second, count: 40})
			},
			func(l *Log) { _ = l.ConnectionRefused(&Client{}, HandshakeFailed, "", 0) }},
		{"limit_hit", "A limit did something. One record a minute at most for each limit and subject: the first at once, and another that counts those since, which has no client.",
			[][]fieldDoc{clientFields, {
				{"limit", "word", always, "which; [below](#limit)"},
				{"subject", "text", "unless too many are told apart", "whose: a user, an address, a network, a backend"},
				{"result", "word", always, "`refused`, `delayed` or `slowed`"},
				{"count", "number", always, "how often, since the last record of this"}}},
			func(l *Log) {
				_ = l.LimitHit(c, &LimitHit{Limit: LimitRate, Subject: "2001:db8::/64", Result: Refused})
			},
			func(l *Log) { _ = l.LimitHit(&Client{}, &LimitHit{Limit: LimitRate, Result: Refused}) }},
		{"ban_added", "Somebody is kept out from now on.",
			[][]fieldDoc{{
				{"subject", "text", always, "an address or a network"},
				{"reason", "word", always, "why; [below](#reason-of-a-ban)"},
				{"until", "time", "unless for good", "when it ends by itself"},
				{"by", "text", "when an operator did it", "who"},
				{"detail", "text", "when an operator gave one", "the operator's words"}}},
			func(l *Log) {
				_ = l.BanAdded(&Ban{Subject: "2001:db8::/64", Reason: CauseOperator, Until: until, Operator: "carol", Note: "complaint 17"})
			},
			func(l *Log) { _ = l.BanAdded(&Ban{Subject: "192.0.2.7", Reason: CauseFailures}) }},
		{"ban_removed", "Somebody is let in again.",
			[][]fieldDoc{{
				{"subject", "text", always, "an address or a network"},
				{"reason", "word", always, "`operator`: a ban that ends at its time has no record of that"},
				{"until", "time", "when it would have ended later", "when"},
				{"by", "text", "when an operator did it", "who"},
				{"detail", "text", "when an operator gave one", "the operator's words"}}},
			func(l *Log) {
				_ = l.BanRemoved(&Ban{Subject: "2001:db8::/64", Reason: CauseOperator, Until: until, Operator: "carol", Note: "cleared"})
			},
			func(l *Log) { _ = l.BanRemoved(&Ban{Subject: "192.0.2.7", Reason: CauseOperator}) }},
		{"spray_suspected", "A few passwords seem to be tried for many users. The end of the suspicion is not on record; the ordinary log has it.",
			[][]fieldDoc{{
				{"subject", "text", "when one network does it", "the network"},
				{"users", "number", always, "about how many were tried"},
				{"addresses", "number", "when counted", "from how many addresses"},
				{"window_ms", "number", "when known", "in how long"}}},
			func(l *Log) {
				_ = l.SpraySuspected(&Spray{Users: 120, Addresses: 80, Subject: "198.51.100.0/24", Window: time.Hour})
			},
			func(l *Log) { _ = l.SpraySuspected(&Spray{Users: 120}) }},
		{"routes_emptied", "Most of the route records that Redis was seen to hold are gone: nobody is taken for unknown any more.",
			[][]fieldDoc{routeStoreFields},
			func(l *Log) { _ = l.RoutesEmptied(&RouteStore{Node: "192.0.2.9:6379", Missing: 64}) },
			func(l *Log) { _ = l.RoutesEmptied(&RouteStore{Missing: 1}) }},
		{"routes_restored", "The records are back, or an operator has said that their loss is meant.",
			[][]fieldDoc{routeStoreFields, {{"by", "text", "when an operator did it", "who"}}},
			func(l *Log) {
				_ = l.RoutesRestored(&RouteStore{Node: "192.0.2.9:6379", Present: 64, Operator: "carol"})
			},
			func(l *Log) { _ = l.RoutesRestored(&RouteStore{Present: 64}) }},
		{"command", "A command of a client, with `audit.commands: writes` or `all`, in the modes that read commands.",
			[][]fieldDoc{clientFields[:1], clientFields[2:4], {
				{"user", "user", always, "the canonical name"},
				{"backend", "text", always, "name of the backend"},
				{"command", "text", always, "the verb, with `UID` before it where it had that"},
				{"mailbox", "text", "when it names one, or concerns the selected one", "in the client's own bytes; not where `APPEND` has it in a literal"},
				{"to", "text", "with `COPY`, `MOVE`, `REPLACE` and `RENAME`", "the mailbox or name it went to"},
				{"messages", "number", "when it named some by number or UID", "how many of those the session knew of; where it did not know all UIDs yet, at most so many"},
				{"literals", "numbers", "when it had some", "their sizes; of the first 16"},
				{"literals_more", "number", "with more than 16", "how many more there were"},
				{"literal_bytes", "number", "as above", "the sizes of all of them together"},
				{"result", "word", always, "`ok`, `no`, `bad`, or `aborted`: a connection ended before the answer, or the session was spliced"},
				{"code", "text", "when the answer had one", "its response code"},
				{"duration_ms", "number", always, "from its first line to its answer, behind any wait for a budget; of `IDLE`, how long it lasted"}}},
			func(l *Log) {
				_ = l.Command(c, &Command{User: u, Backend: "east", Name: "UID REPLACE", IsWrite: true, Mailbox: "INBOX", Destination: "Sent", Messages: 1,
					LiteralSizes: []int64{2310}, OtherLiterals: LiteralTotal{1, 20}, Result: CommandOK, ResponseCode: "APPENDUID", Duration: 21 * time.Millisecond})
			},
			func(l *Log) {
				_ = l.Command(&Client{}, &Command{User: u, Backend: "east", Name: "NOOP", Result: CommandOK})
			}},
		{"session_attached", "In mode `resume`, a session was given a connection to its backend anew, or in vain.",
			[][]fieldDoc{clientFields, muxFields, {
				{"reason", "word", always, "`lost`: the one before was lost; `hold`: the same, and a command waited; `detach`: it had been given back"},
				{"result", "word", always, "[below](#result-of-session_attached)"},
				{"expunged", "number", always, "messages the client did not know to be gone"},
				{"arrived", "number", always, "messages the client did not know to be there"},
				{"duration_ms", "number", always, "how long it took"}}},
			func(l *Log) { _ = l.SessionReattached(c, mux) }, func(l *Log) { _ = l.SessionReattached(&Client{}, least) }},
		{"upstream_lost", "A session lost its connection to the backend; unless its end follows, it goes on.",
			[][]fieldDoc{clientFields, muxFields, {
				{"reason", "word", always, "how; [below](#reason-of-the-modes-reuse-and-resume)"},
				{"duration_ms", "number", always, "how long it had it"}}},
			func(l *Log) {
				_ = l.UpstreamLost(c, &MuxEvent{User: u, Backend: "east", Mailbox: "INBOX", Reason: LostBye, Duration: time.Minute})
			},
			func(l *Log) { _ = l.UpstreamLost(&Client{}, least) }},
		{"session_pinned", "From here on a session ends with its connection to the backend.",
			[][]fieldDoc{clientFields, muxFields, {{"reason", "word", always, "why; [below](#reason-of-the-modes-reuse-and-resume)"}}},
			func(l *Log) {
				_ = l.SessionPinned(c, &MuxEvent{User: u, Backend: "east", Mailbox: "INBOX", Reason: PinNotify})
			},
			func(l *Log) { _ = l.SessionPinned(&Client{}, least) }},
		{"started", "A gateway began to serve.",
			[][]fieldDoc{{{"version", "text", always, "its release"}}},
			func(l *Log) { _ = l.GatewayStarted("v1.2.0") }, func(l *Log) { _ = l.GatewayStarted("devel") }},
		{"stopped", "A gateway ended in good order. One that was killed has none.",
			[][]fieldDoc{{{"reason", "word", always, "`shutdown`"}}},
			func(l *Log) { _ = l.GatewayStopped(GatewayStopping) }, func(l *Log) { _ = l.GatewayStopped(GatewayStopping) }},
		{"config_reloaded", "At SIGHUP: the configuration is the one in use, and the files that can be read again were.",
			[][]fieldDoc{{
				{"result", "word", always, "`accepted`"},
				{"reread", "text", always, "what was read again"}}},
			func(l *Log) { _ = l.ConfigReloaded("audit log, certificates, secrets", nil) }, func(l *Log) { _ = l.ConfigReloaded("audit log", nil) }},
		{"config_rejected", "At SIGHUP: the configuration is broken, or has changed and needs a restart, or a file that it names cannot be used. What was in use stays.",
			[][]fieldDoc{{
				{"result", "word", always, "`refused`"},
				{"reread", "text", always, "what was read again; where it cannot be used, the last good version stays"},
				{"detail", "text", always, "why"}}},
			func(l *Log) {
				_ = l.ConfigReloaded("audit log, certificates, secrets", errors.New("/etc/imapgate.yaml has changed, which needs a restart: limits.drain_timeout"))
			},
			func(l *Log) {
				_ = l.ConfigReloaded("audit log, certificates, secrets", errors.New("mail.pem: no certificate in it"))
			}},
		{"operator_action", "Somebody in charge told the gateway to do something.",
			[][]fieldDoc{{
				{"action", "word", always, "what; [below](#action)"},
				{"by", "text", "when known", "who, or `signal`"},
				{"subject", "text", "when there is one", "what it was done to"},
				{"result", "word", always, "`accepted` or `refused`"},
				{"detail", "text", "when refused", "why"}}},
			func(l *Log) {
				_ = l.OperatorAction(&OperatorAction{Action: ActBan, Operator: "carol", Subject: "192.0.2.7", Err: errors.New("no such address")})
			},
			func(l *Log) { _ = l.OperatorAction(&OperatorAction{Action: ActReload}) }},
		{"records_lost", "This sink could not keep some records, and now can again. Every sink gets it, whatever its filter.",
			[][]fieldDoc{{{"lost", "number", always, "how many, since the last such record"}}},
			loseRecords, loseRecords},
		{"log_opened", "With `audit.chain`, the first record of each new file.",
			[][]fieldDoc{{{"previous", "hex", "unless a chain begins here", "the hash of the last record of the file before"}}},
			func(l *Log) { beginFile(l, chain{seq: 4711, hash: [32]byte{0xc0, 0xff, 0xee}}) }, func(l *Log) { beginFile(l, chain{}) }},
	}
}

// loseRecords and open1 make the two records that only writers make.
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

// TestSchemaIsDocumented keeps docs/AUDIT.md what the code does.
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
		if e.name == "login_refused" { // the one record that has claimed has no user
			full["user"] = "alice@example.org"
		}
		if e.name == "login_accepted" {
			full["claimed"] = "Alice"
		}
		for name, value := range full {
			if m, ok := known[name]; !ok || !isType(m.kind, value) {
				t.Errorf("%s: %s = %v, the schema says %+v", e.name, name, value, m)
			}
		}
		for name, m := range known {
			if full[name] == nil {
				t.Errorf("%s: the fullest record has no %s", e.name, name)
			}
			if (bare[name] != nil) != (m.when == always) {
				t.Errorf("%s: %s is there %s, and in the emptiest record %v", e.name, name, m.when, bare[name])
			}
		}
		if full["event"] != e.name {
			t.Errorf("%s is called %v", e.name, full["event"])
		}
		if result, ok := full["result"].(string); ok && !slices.Contains(Results(), result) {
			t.Errorf("%s: the result %s is not listed", e.name, result)
		}
	}
	slices.Sort(listed)
	if events := slices.Sorted(slices.Values(Events())); !slices.Equal(listed, events) {
		t.Errorf("described are %q, there are %q", listed, events)
	}
}

// isType says whether a decoded value is of one of the schema's types.
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

// renderSchema is the text of docs/AUDIT.md.
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
	b.WriteString("\n## Closed sets\n\nAnything else is written as `internal` for a `reason` of the first table, and as `other` elsewhere.\n")
	writeSet(t, &b, "`reason`", "reason.go", "Reason")
	writeSet(t, &b, "`reason` of the modes reuse and resume", "mux.go", "Why")
	writeSet(t, &b, "`result` of `session_attached`", "mux.go", "Result")
	writeSet(t, &b, "`limit`", "limits.go", "Limit")
	writeSet(t, &b, "`reason` of a ban", "limits.go", "Cause")
	writeSet(t, &b, "`action`", "gateway.go", "Action")
	b.WriteString("\n### `upstream`\n\n`" + strings.Join(slices.Sorted(maps.Keys(connectResults)), "`, `") + "`\n")
	b.WriteString(epilogue)
	return b.String()
}

// fieldGroups names the shared members of an event.
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

// ownFields gives the members of an event that are not of a named group.
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

// writeSet writes the constants of one type as a table, with their comments: those
// of their block once, before it.
func writeSet(t *testing.T, b *strings.Builder, title, file, kind string) {
	fmt.Fprintf(b, "\n### %s\n", title)
	source, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range source.Decls {
		block, ok := d.(*ast.GenDecl)
		if !ok || block.Tok != token.CONST {
			continue
		}
		begun := false
		for _, s := range block.Specs {
			one := s.(*ast.ValueSpec)
			if of, ok := one.Type.(*ast.Ident); !ok || of.Name != kind {
				continue
			}
			if !begun {
				fmt.Fprintf(b, "\n%s\n\n| word | |\n|---|---|\n", strings.Join(strings.Fields(block.Doc.Text()), " "))
				begun = true
			}
			word, err := strconv.Unquote(one.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(b, "| `%s` | %s |\n", word, strings.TrimSpace(one.Comment.Text()))
		}
	}
}
