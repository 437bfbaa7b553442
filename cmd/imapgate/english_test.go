package main

import (
	"strings"
	"testing"

	"imapgate/proxy"
	"imapgate/proxy/mux"
)

func TestNumbersAreFollowedByTheRightWords(t *testing.T) {
	for got, want := range map[string]string{
		counted(1, "user"): "1 user", counted(0, "user"): "0 users", counted(2, "user"): "2 users", counted(2, "address"): "2 addresses",
		aSpan("hour"): "an hour", aSpan("day"): "a day", aSpan("minute"): "a minute", are(1): "is", are(2): "are",
		followedText(proxy.BackendState{Trust: mux.Trust{Users: 1, SplicedUsers: 1}}): "yes, but for the 1 user to whom it broke promises of IMAP in the last hour",
		followedText(proxy.BackendState{Trust: mux.Trust{Users: 1}}):                  "yes; it broke promises of IMAP to 1 user in the last hour",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var table strings.Builder
	s := standing{Failed: []failed{{Of: "alice", In: "hour", Count: 1}}, Uploads: &uploads{Today: 1}}
	if err := s.print(&table); err != nil || !strings.Contains(table.String(), "1 in an hour, no limit, alice") || !strings.Contains(table.String(), "1 byte (UTC)") {
		t.Errorf("%v:\n%s", err, table.String())
	}
	one := uint64(1)
	l := auditLine{Event: "session_ended", Count: &one, Commands: &one, In: &one, Out: &one}
	if said := l.sentence(); !strings.Contains(said, "1 command, 1 byte in, 1 byte out") {
		t.Error(said)
	}
}
