package main

import (
	"strings"
	"testing"

	"imapgate/proxy"
	"imapgate/proxy/mux"
)

func TestNumbersAreFollowedByTheRightWords(t *testing.T) {
	for got, want := range map[string]string{
		pluralize(1, "user"): "1 user", pluralize(0, "user"): "0 users", pluralize(2, "user"): "2 users", pluralize(2, "address"): "2 addresses",
		withArticle("hour"): "an hour", withArticle("day"): "a day", withArticle("minute"): "a minute", isOrAre(1): "is", isOrAre(2): "are",
		formatFollowed(proxy.BackendState{ViolationStatus: mux.ViolationStatus{AffectedUsers: 1, SplicedUsers: 1}}): "yes, but for the 1 user to whom it broke promises of IMAP in the last hour",
		formatFollowed(proxy.BackendState{ViolationStatus: mux.ViolationStatus{AffectedUsers: 1}}):                  "yes; it broke promises of IMAP to 1 user in the last hour",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var table strings.Builder
	s := limitStatus{Failures: []failureCount{{Subject: "alice", Window: "hour", Count: 1}}, Uploads: &uploadCount{Today: 1}}
	if err := s.print(&table); err != nil || !strings.Contains(table.String(), "1 in an hour, no limit, alice") || !strings.Contains(table.String(), "1 byte (UTC)") {
		t.Errorf("%v:\n%s", err, table.String())
	}
	one := uint64(1)
	l := auditRecord{Event: "session_ended", Count: &one, Commands: &one, BytesIn: &one, BytesOut: &one}
	if said := l.description(); !strings.Contains(said, "1 command, 1 byte in, 1 byte out") {
		t.Error(said)
	}
}
