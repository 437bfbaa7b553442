package main

import (
	"strings"
	"testing"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/legacy"
)

func TestNumbersHaveSingularAndPlural(t *testing.T) {
	for got, want := range map[string]string{
		pluralize(1, "user"): "1 user", pluralize(0, "user"): "0 users", pluralize(2, "user"): "2 users", pluralize(2, "address"): "2 addresses",
		isOrAre(1): "is", isOrAre(2): "are",
		formatMultiplexed(&api.Backend{AffectedUsers: 1, SplicedUsers: 1}): "yes, except for 1 user with protocol violations in the last hour",
		formatMultiplexed(&api.Backend{AffectedUsers: 1}):                  "yes; 1 user had protocol violations in the last hour",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	s := legacy.LimitStatus{Failures: []legacy.FailureCount{{Subject: "192.0.2.0/24", Window: "hour", Count: 1}}, Uploads: &legacy.UploadCount{Today: 1}}
	if table := formatLimits(s); !strings.Contains(table, "failed logins (1 hour)   1 / no limit from 192.0.2.0/24") || !strings.Contains(table, "1 byte (UTC)") {
		t.Errorf("%s", table)
	}
	one := uint64(1)
	l := auditRecord{Event: "session_ended", Count: &one, Commands: &one, BytesIn: &one, BytesOut: &one}
	if text := l.description(); !strings.Contains(text, "1 command, 1 byte in, 1 byte out") {
		t.Error(text)
	}
}
