package config

import (
	"reflect"
	"strings"
	"testing"

	"imapgate/internal/audit"
)

func TestSinksOfTheAuditLogAreRead(t *testing.T) {
	c := mustParse(t, minimal+`
redis: {}
audit:
  on_failure: drop
  commands: writes
  chain: true
  sinks:
    - {type: file, path: /var/log/audit.log, on_failure: block}
    - {type: syslog, address: "tls://logs.internal:6514", ca: /ca.pem, facility: local3, events: [login_refused, ban_added], results: [refused]}
    - {type: syslog, name: local, address: "unix:///dev/log", format: rfc5424}
    - {type: redis, stream: audit, max_records: 500}
    - {type: stdout}
`)
	a := c.Audit
	if a.OnFailure != "drop" || a.Commands != "writes" || !a.Chain || len(a.Sinks) != 5 {
		t.Fatalf("%+v", a)
	}
	want := audit.SinkSettings{Type: "syslog", Address: "tls://logs.internal:6514", CA: "/ca.pem", Facility: "local3", MaxRecords: 100_000,
		Events: []string{"login_refused", "ban_added"}, Results: []string{"refused"}}
	if !reflect.DeepEqual(a.Sinks[1], want) {
		t.Errorf("%+v", a.Sinks[1])
	}
}

func TestSinkProblemsAreReported(t *testing.T) {
	_, err := parse("x", []byte(minimal+`
audit:
  path: /var/log/audit.log
  sinks:
    - {name: none}
    - {type: file}
    - {type: stdout, path: /x, format: rfc3164}
    - {type: stdout}
    - {type: syslog, name: s1}
    - {type: syslog, name: s2, address: "udp://host:514"}
    - {type: syslog, name: s3, address: "tcp://host:514", ca: /ca.pem}
    - {type: redis, events: [login], results: [great]}
`), noEnv)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"audit.path: cannot be combined with sinks", "audit.sinks[0].type: is required", "audit.sinks[1].path: is required",
		"audit.sinks[2].path: is for type: file", "audit.sinks[2].format: is for type: syslog", "audit.sinks[3].name: \"stdout\" is already the name of another sink",
		"audit.sinks[4].address: is required", "audit.sinks[5].address: \"udp://host:514\" is not unix:///path",
		"audit.sinks[6]: ca, server_name and client_certificate are used only with tls://", "audit.sinks[7].type: is redis, but there is no redis block",
		"audit.sinks[7].events[0]: \"login\" is not one of", "audit.sinks[7].results[0]: \"great\" is not one of",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s\n%v", want, err)
		}
	}
}
