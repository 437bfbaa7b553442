package mux

import (
	"errors"
	"strings"
	"testing"

	"imapgate/internal/imap"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
)

// visibleAfter returns the visible range of a mailbox after responses to a SELECT, and
// after those to later commands.
func visibleAfter(t *testing.T, selected, later string) mailbox.VisibleRange {
	t.Helper()
	data := &mailbox.SelectData{}
	for line := range strings.Lines(selected) {
		data.ReadUntagged([]byte(line))
	}
	m := mailbox.New("SELECT", "INBOX", data)
	for line := range strings.Lines(later) {
		testkit.NoError(t, m.ReadUntagged(imap.Segment{Bytes: []byte(line), End: true}))
	}
	return m.VisibleRange()
}

func TestACommandDoesNotChangeMessagesThatArrivedLater(t *testing.T) {
	visible := visibleAfter(t, "* 4 EXISTS\r\n* OK [UIDNEXT 10] x\r\n", "")
	for _, c := range []struct {
		sent, goes string
		err        error
	}{
		{"a STORE 1:* +FLAGS (\\Deleted)\r\n", "a STORE 1:4 +FLAGS (\\Deleted)\r\n", nil},
		{"a STORE * FLAGS ()\r\n", "a STORE 4 FLAGS ()\r\n", nil},
		{"a STORE 2,4 FLAGS ()\r\n", "a STORE 2,4 FLAGS ()\r\n", nil},
		{"a STORE 5 FLAGS ()\r\n", "", mailbox.ErrRange},
		{"a STORE 3:5 FLAGS ()\r\n", "", mailbox.ErrRange},
		{"a UID STORE 3:* FLAGS ()\r\n", "a UID STORE 3:9 FLAGS ()\r\n", nil},
		{"a UID STORE 100:* FLAGS ()\r\n", "a UID STORE 9 FLAGS ()\r\n", nil}, // * is the last message (RFC 9051 §9, seq-range)
		{"a UID MOVE 2,5:1000 Trash\r\n", "a UID MOVE 2,5:9 Trash\r\n", nil},
		{"a UID EXPUNGE 10:20\r\n", "", mailbox.ErrNoMatch},
		{"a UID COPY * {5+}\r\nTrash\r\n", "a UID COPY 9 {5+}\r\nTrash\r\n", nil},
		{"a UID STORE $ FLAGS ()\r\n", "a UID STORE $ FLAGS ()\r\n", nil},
	} {
		head, err := command.Lookup([]byte(c.sent))
		if err != nil || !changesMessages(head.Spec) {
			t.Fatalf("%s: %v", c.sent, err)
		}
		got, err := clampCommand([]byte(c.sent), head.Spec, visible)
		if string(got) != c.goes || !errors.Is(err, c.err) {
			t.Errorf("%q is sent as %q, %v", c.sent, got, err)
		}
	}
	for _, empty := range []mailbox.VisibleRange{{}, visibleAfter(t, "* 3 EXISTS\r\n", "")} {
		head, _ := command.Lookup([]byte("a UID STORE 1:* FLAGS ()\r\n")) // a known command
		if got, err := clampCommand([]byte("a UID STORE 1:* FLAGS ()\r\n"), head.Spec, empty); err == nil {
			t.Errorf("%v: %q is sent", empty, got)
		}
	}
}

func TestListedUIDsAreVisibleInAnUnknownRange(t *testing.T) {
	visible := visibleAfter(t, "* 1 EXISTS\r\n* OK [UIDNEXT 10] x\r\n", "* 1 FETCH (UID 9)\r\n* 4 EXISTS\r\n")
	for sent, relayed := range map[string]bool{
		"a UID EXPUNGE 3,7,9\r\n":                true,
		"a UID STORE 1:9 +FLAGS (\\Deleted)\r\n": true,
		"a UID STORE 2,12 FLAGS ()\r\n":          true, // as in APPENDUID
		"a UID MOVE 7:12 Trash\r\n":              false,
		"a UID EXPUNGE *\r\n":                    false,
		"a UID EXPUNGE 3:*\r\n":                  false,
	} {
		head, err := command.Lookup([]byte(sent))
		if err != nil || !changesMessages(head.Spec) {
			t.Fatalf("%s: %v", sent, err)
		}
		got, err := clampCommand([]byte(sent), head.Spec, visible)
		if relayed != (err == nil && string(got) == sent) || !relayed && !errors.Is(err, errPendingExpunges) {
			t.Errorf("%q is sent as %q, %v", sent, got, err)
		}
	}
}
