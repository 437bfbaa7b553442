package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
)

// sentences has members of records, by event, and their descriptions.
func sentences() []struct{ event, members, want string } {
	return []struct{ event, members, want string }{
		{"login_accepted", `"user":"a","mechanism":"AUTH=PLAIN","method":"passthrough","backend":"east","upstream_user":"u17","route":"cache","route_age_ms":1500,"upstream":"ok","upstream_ms":9,"delay_ms":2000,"duration_ms":2012,"result":"accepted","tls":"TLS 1.3"`,
			"at east as u17, by AUTH=PLAIN, credentials accepted by the backend, route from cache (1.5s old), TLS 1.3, took 2.012s, 2s of it deliberate delay"},
		{"login_accepted", `"user":"a","mechanism":"LOGIN","method":"file","backend":"east","route":"redis","upstream":"ok","duration_ms":12,"result":"accepted"`,
			"at east, by LOGIN, credentials accepted by file, route from redis, took 12ms"},
		{"login_refused", `"user":"a","mechanism":"LOGIN","method":"passthrough","backend":"east","route":"redis","upstream":"denied","upstream_ms":9,"duration_ms":210,"result":"refused","reason":"bad_credentials"`,
			"reason bad_credentials, at east, by LOGIN, credentials denied by the backend, login at the backend: denied after 9ms, route from redis, took 210ms"},
		{"login_refused", `"user":"a","mechanism":"LOGIN","method":"passthrough","duration_ms":210,"result":"refused","reason":"no_route"`,
			"reason no_route, by LOGIN, credentials not checked, took 210ms"},
		{"login_refused", `"user":"a","mechanism":"LOGIN","method":"passthrough","backend":"east","route":"redis","upstream":"unreachable","upstream_ms":9,"duration_ms":210,"result":"unavailable","reason":"backend_down"`,
			"reason backend_down, at east, by LOGIN, credentials not checked, login at the backend: unreachable after 9ms, route from redis, took 210ms"},
		{"login_refused", `"user":"a","mechanism":"LOGIN","method":"passthrough","backend":"east","route":"redis","upstream":"closed","upstream_ms":9,"duration_ms":210,"result":"unavailable","reason":"backend_error"`,
			"reason backend_error, at east, by LOGIN, credentials left to the backend, login at the backend: closed after 9ms, route from redis, took 210ms"},
		{"login_refused", `"user":"a","mechanism":"LOGIN","method":"passthrough","backend":"east","route":"redis","upstream":"ok","upstream_ms":9,"duration_ms":210,"result":"refused","reason":"limit_reached"`,
			"reason limit_reached, at east, by LOGIN, credentials accepted by the backend, route from redis, took 210ms"},
		{"login_refused", `"user":"a","mechanism":"LOGIN","method":"file","duration_ms":210,"result":"refused","reason":"user_blocked"`,
			"reason user_blocked, by LOGIN, credentials accepted by file, took 210ms"},
		{"login_refused", `"claimed":"a b","mechanism":"LOGIN","duration_ms":210,"result":"refused","reason":"bad_name"`, "reason bad_name, by LOGIN, took 210ms"},
		{"login_refused", `"mechanism":"AUTH=","duration_ms":0,"result":"refused","reason":"cleartext","count":40`, "reason cleartext, 40 times, by AUTH=, took 0s"},
		{"session_ended", `"user":"a","backend":"east","mode":"reuse","reason":"client_logout","bytes_in":812,"bytes_out":1,"commands":17,"duration_ms":60000`,
			"reason client_logout, at east in mode reuse, 17 commands, 812 bytes in, 1 byte out, after 1m"},
		{"connection_refused", `"reason":"tls_failed","detail":"remote error: tls: bad certificate","tls":"TLS 1.3","duration_ms":1000,"count":40`,
			"reason tls_failed (remote error: tls: bad certificate), 40 times, TLS 1.3, after 1s"},
		{"limit_hit", `"limit":"connection_rate","subject":"192.0.2.7/32","result":"refused","count":1`, "refused by limit connection_rate"},
		{"limit_hit", `"limit":"commands","subject":"a","result":"slowed","count":12`, "slowed by limit commands, 12 times"},
		{"ban_added", `"subject":"192.0.2.7/32","reason":"operator","until":"2026-05-01T12:10:00.000Z","by":"carol","detail":"complaint 17"`,
			"by carol, until @, note: complaint 17"},
		{"ban_added", `"subject":"192.0.2.7/32","reason":"failures"`, "reason failures"},
		{"ban_removed", `"subject":"192.0.2.7/32","reason":"operator","until":"2026-05-01T12:10:00.000Z","by":"carol","detail":"cleared"`,
			"by carol, before its end at @, note: cleared"},
		{"spray_suspected", `"subject":"198.51.100.0/24","users":120,"addresses":80,"window_ms":3600000`, "120 users tried from 80 addresses, within 1h"},
		{"address_state", `"backend":"east","address":"mail-e1:993","state":"down","was":"up","detail":"health check: refused"`, "mail-e1:993 of east is down, was up, health check: refused"},
		{"routes_emptied", `"present":0,"missing":64`, "0 records present, 64 records missing"},
		{"routes_restored", `"present":64,"missing":1,"by":"carol"`, "by carol, 64 records present, 1 record missing"},
		{"command", `"user":"a","backend":"east","command":"UID MOVE","mailbox":"INBOX","to":"Sent","messages":2,"result":"ok","code":"COPYUID","duration_ms":21`,
			"UID MOVE in INBOX to Sent: ok [COPYUID], at east, 2 messages, took 21ms"},
		{"command", `"user":"a","backend":"east","command":"APPEND","mailbox":"Sent","literals":[2310],"literal_bytes":2310,"result":"aborted","duration_ms":21`,
			"APPEND in Sent: aborted, at east, 2310 bytes of literals, took 21ms"},
		{"session_attached", `"user":"a","backend":"east","mailbox":"INBOX","reason":"lost","result":"ok","expunged":1,"arrived":3,"duration_ms":40`,
			"reattached to east in INBOX, reason lost, 1 message expunged, 3 messages new, after 40ms"},
		{"session_attached", `"user":"a","backend":"east","mailbox":"INBOX","reason":"hold","result":"timeout","expunged":0,"arrived":0,"duration_ms":40`,
			"not reattached to east in INBOX, result timeout, reason hold, after 40ms"},
		{"upstream_lost", `"user":"a","backend":"east","mailbox":"INBOX","reason":"bye","duration_ms":60000`, "connection to east lost in INBOX, reason bye, after 1m"},
		{"session_pinned", `"user":"a","backend":"east","mailbox":"INBOX","reason":"notify"`, "pinned to its connection to east in INBOX, reason notify"},
		{"started", `"version":"v1.2.0"`, "version v1.2.0"},
		{"stopped", `"reason":"shutdown"`, "reason shutdown"},
		{"config_reloaded", `"result":"accepted","reread":"audit log, certificates, secrets"`, "accepted, reloaded: audit log, certificates, secrets"},
		{"config_rejected", `"result":"refused","reread":"audit log","detail":"/f has changed, which needs a restart: log.level"`,
			"refused: /f has changed, which needs a restart: log.level, reloaded: audit log"},
		{"operator_action", `"action":"ban","by":"carol","subject":"192.0.2.7","result":"accepted"`, "ban accepted, by carol"},
		{"operator_action", `"action":"ban","by":"carol","subject":"192.0.2.7","result":"refused","detail":"no such address"`, "ban refused: no such address, by carol"},
		{"records_lost", `"lost":12`, "12 records lost"},
		{"log_opened", `"seq":1`, ""},
		{"log_opened", `"previous":"c0ffee","seq":1`, "after the hash c0ffee"},
		{"of_a_later_release", `"reason":"new","result":"odd"`, "odd, reason new"},
	}
}

func TestAuditGrepDescribesEveryEvent(t *testing.T) {
	until := time.Date(2026, 5, 1, 12, 10, 0, 0, time.UTC).Local().Format(time.DateTime)
	described := map[string]bool{}
	for _, x := range sentences() {
		var l auditRecord
		text := fmt.Sprintf(`{"v":1,"time":"2026-05-01T12:00:00.000Z","event":%q,%s}`, x.event, x.members)
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if got, want := l.description(), strings.ReplaceAll(x.want, "@", until); got != want {
			t.Errorf("%s\nis  %q,\nnot %q", text, got, want)
		}
		described[x.event] = true
	}
	for _, event := range event.Values("Event") {
		if !described[event] {
			t.Errorf("no sentence describes %s", event)
		}
	}
}

func TestAClientThatLeavesIsNotCalledRefused(t *testing.T) {
	for reason, want := range map[string]string{"client_closed": "  left without login  ", "tls_failed": "  connection refused  "} {
		if got := (recordFormat{}).format(&auditRecord{Event: "connection_refused", Reason: reason}); !strings.Contains(got, want) {
			t.Errorf("%s: %q", reason, got)
		}
	}
}
