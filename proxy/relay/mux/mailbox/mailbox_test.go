package mailbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/imap"
)

// selectData returns the data of a SELECT with these responses, one a line.
func selectData(responses string) *SelectData {
	d := &SelectData{}
	for line := range strings.Lines(responses) {
		d.ReadUntagged([]byte(strings.TrimSuffix(line, "\n") + "\r\n"))
	}
	return d
}

// read applies responses, one a line, and returns the first error.
func (m *Mailbox) read(responses string) error {
	for line := range strings.Lines(responses) {
		if err := m.ReadUntagged(imap.Segment{Bytes: []byte(strings.TrimSuffix(line, "\n") + "\r\n"), End: true}); err != nil {
			return err
		}
	}
	return nil
}

// resyncText returns what Resync sends, one response a line.
func (m *Mailbox) resyncText(d *Diff, data *SelectData, enabled imap.Extensions) string {
	pieces := slices.Collect(func(yield func(string) bool) {
		for b := range m.Resync(d, data, enabled) {
			if !yield(string(b)) {
				return
			}
		}
	})
	return strings.ReplaceAll(strings.Join(pieces, ""), "\r\n", "\n")
}

const opened = "* FLAGS (\\Seen)\n* 3 EXISTS\n* 1 RECENT\n* OK [UIDVALIDITY 7] x\n* OK [UIDNEXT 4] x\n* OK [HIGHESTMODSEQ 10] x\n" +
	"* OK [PERMANENTFLAGS (\\Seen)] x\n* OK [MAILBOXID (m1)] x\n"

func TestResponsesChangeTheMailbox(t *testing.T) {
	for _, c := range []struct {
		responses string
		exists    uint32
		violation event.Violation
	}{
		{"* 5 EXISTS", 5, ""},
		{"* 5 EXISTS\n* 4 EXISTS", 5, event.ExistsShrank},
		{"* 2 EXPUNGE\n* 3 EXISTS", 3, ""},
		{"* 4 EXPUNGE", 3, event.ExpungeRange},
		{"* VANISHED (EARLIER) 1:3", 3, ""},
		{"* VANISHED 1:900", 3, event.ExpungeRange},
		{"* VANISHED x", 3, event.ExpungeRange},
		{"* FLAGS (\\Seen x)\n* OK [PERMANENTFLAGS (x)] y\n* OK [READ-ONLY] z\n* OK [UIDVALIDITY 7] z\n* NO text\n* OK", 3, ""},
		{"* 1 FETCH (FLAGS (UID) UID 2)\n* 99999999999 EXISTS\n* LIST () NIL x", 3, ""},
	} {
		m := New("SELECT", "INBOX", selectData(opened))
		err := m.read(c.responses)
		if (err != nil) != (c.violation != "") || err != nil && ViolationOf(err) != c.violation || m.Exists() != c.exists {
			t.Errorf("%q: %d messages, %v", c.responses, m.Exists(), err)
		}
	}
	m := New("SELECT", "INBOX", selectData(opened))
	if err := m.read("* OK [UIDVALIDITY 8] x"); !errors.Is(err, ErrChanged) {
		t.Errorf("another UIDVALIDITY: %v", err)
	}
	if err := m.read("* 1 FETCH (UID 2 FLAGS ())\n* OK [READ-ONLY] x"); err != nil || m.KnownCount() != 1 || !m.IsReadOnly() {
		t.Errorf("%v, %d UIDs known", err, m.KnownCount())
	}
}

func TestAnotherMailboxIsNoticed(t *testing.T) {
	m := New("SELECT", "INBOX", selectData(opened))
	for replace, want := range map[string]error{
		"":                                   nil,
		"UIDVALIDITY 7/UIDVALIDITY 8":        ErrChanged,
		"* OK [UIDVALIDITY 7] x\n/":          ErrChanged,
		"(m1)/(m2)":                          ErrChanged,
		"UIDNEXT 4/UIDNEXT 3":                errUIDNextShrank,
		"HIGHESTMODSEQ 10/HIGHESTMODSEQ 9":   errModseqShrank,
		"* OK [UIDNEXT 4] x\n/":              nil,
		"* OK [HIGHESTMODSEQ 10] x\n/":       nil,
		"HIGHESTMODSEQ 10/HIGHESTMODSEQ 999": nil,
	} {
		from, to, _ := strings.Cut(replace, "/")
		if err := m.Check(selectData(strings.Replace(opened, from, to, 1))); !errors.Is(err, want) {
			t.Errorf("%s: %v", replace, err)
		}
	}
}

func TestResyncTellsTheDifference(t *testing.T) {
	for _, c := range []struct {
		uids, reopened string
		enabled        imap.Extensions
		want           string
	}{
		{"1:3", opened, "", ""},
		{"1,3", strings.Replace(opened, "3 EXISTS", "2 EXISTS", 1), "", "* 2 EXPUNGE\n"},
		{"1,3,8", opened + "* OK [UIDNEXT 9] x\n", "", "* 2 EXPUNGE\n* 3 EXISTS\n"},
		{"3", strings.Replace(opened, "3 EXISTS", "1 EXISTS", 1), imap.Extensions("").With(imap.Qresync), "* VANISHED 1:2\n"},
		{"1:3", strings.ReplaceAll(opened, "(\\Seen)", "(\\Seen new)"), "", "* FLAGS (\\Seen new)\n* OK [PERMANENTFLAGS (\\Seen new)] x\n"},
		{"1:3", strings.Replace(opened, "1 RECENT", "0 RECENT", 1) + "* 1 FETCH (FLAGS ())\n", "", "* 0 RECENT\n* 1 FETCH (FLAGS ())\n"},
		{"1:3", strings.Replace(opened, "1 RECENT", "0 RECENT", 1), imap.Rev2, ""},
	} {
		m, data := New("SELECT", "INBOX", selectData(opened)), selectData(c.reopened)
		uids := parseUIDSet(t, c.uids)
		d, err := m.Compare(uids, data)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.resyncText(&d, data, c.enabled); got != c.want || m.View.String() != c.uids+"+0" {
			t.Errorf("%s: sent %q, then %s", c.uids, got, m.View.String())
		}
		data.Fetches = nil
		if got := m.resyncText(nil, data, c.enabled); got != "" {
			t.Errorf("%s: a second resync sends %q", c.uids, got)
		}
	}
}

func TestFlagsAreQueriedSinceTheLastModseq(t *testing.T) {
	condstore := imap.Extensions(imap.Condstore)
	m := New("SELECT", "INBOX", selectData(opened))
	same, later := selectData(opened), selectData(opened+"* OK [HIGHESTMODSEQ 15] x\n")
	if m.HasFlagChanges(same) || !m.HasFlagChanges(later) || !m.NeedsAux(later, "") || m.NeedsAux(later, condstore) {
		t.Error("flags changed since the mod-sequence, or not")
	}
	if fetch, isAll := m.FetchFlags(later, condstore); fetch != "FETCH 1:3 (UID FLAGS MODSEQ) (CHANGEDSINCE 10)" || isAll {
		t.Error(fetch, isAll)
	}
	if fetch, isAll := m.FetchFlags(later, ""); fetch != "FETCH 1:3 (UID FLAGS)" || !isAll {
		t.Error(fetch, isAll)
	}
	m.PostponeFlags(later)
	if !m.HasFlagChanges(same) || m.PostponedFlags().Modseq != 15 {
		t.Error("postponed flags are forgotten")
	}
	m.EndPostponedFlags()
	if m.HasFlagChanges(later) || m.PostponedFlags() != nil {
		t.Error("flags remain to be sent")
	}
	later = selectData(opened + "* OK [HIGHESTMODSEQ 20] x\n")
	if got := string(m.FinishFlags(nil, later, imap.Extensions("").With(imap.Qresync))); got != "* OK [HIGHESTMODSEQ 20] Highest\r\n" || m.HasFlagChanges(later) {
		t.Errorf("%q", got)
	}
	if got := m.FinishFlags(nil, selectData(""), condstore); len(got) > 0 || m.HasFlagChanges(later) {
		t.Errorf("%q: a mailbox without mod-sequences", got)
	}
}

// A mod-sequence of the backend that a session has left says nothing about the next one.
func TestTheModseqOfAnotherBackendEndsWithPostponedFlags(t *testing.T) {
	m := New("SELECT", "INBOX", selectData(opened))
	m.MoveElsewhere()
	m.PostponeFlags(selectData("* 3 EXISTS\n"))
	m.EndPostponedFlags()
	if later := selectData(opened + "* OK [HIGHESTMODSEQ 9] x\n"); m.IsElsewhere() || m.Check(later) != nil {
		t.Error("a mod-sequence below that of the other backend is taken for one that shrank")
	}
}

func TestModseqHoldsAfterItIsConfirmed(t *testing.T) {
	m := New("SELECT", "INBOX", selectData("* 1 EXISTS\n"))
	data := selectData("* 1 EXISTS\n* OK [HIGHESTMODSEQ 5] x\n")
	if !m.NeedsModseq() {
		t.Error("the backend need not be asked")
	}
	m.SetPendingModseq(ParseHighestModseq([]byte("* STATUS INBOX (HIGHESTMODSEQ 5)\r\n")))
	if m.NeedsModseq() || !m.HasPendingModseq() || !m.HasFlagChanges(data) {
		t.Error("the answer is not pending")
	}
	m.ConfirmModseq()
	if m.HasPendingModseq() || m.HasFlagChanges(data) {
		t.Error("the answer is not confirmed")
	}
}

func TestUIDsAreLearnedLate(t *testing.T) {
	ok := imap.Response{Name: "OK"}
	for _, c := range []struct {
		uids     string
		res      imap.Response
		known    uint32
		hasMore  bool // the rest may be queried at once
		isWrong  bool
		deferred bool
	}{
		{"1:3", ok, 3, false, false, false},
		{"1,3", ok, 0, false, false, true},
		{"1:4", ok, 0, true, true, false},
		{"1:3", imap.Response{Name: "NO"}, 0, false, false, false},
		{"1:3", imap.Response{Name: "OK", Code: "MESSAGELIMIT"}, 0, false, false, false},
	} {
		m := New("SELECT", "INBOX", selectData(opened))
		first, last, _ := m.UnknownRange()
		err := m.LearnUIDs(first, last, parseUIDSet(t, c.uids), c.res)
		_, _, hasMore := m.UnknownRange()
		if errors.Is(err, ErrUIDMismatch) != c.isWrong || m.KnownCount() != c.known || hasMore != c.hasMore || m.AreUIDsDeferred() != c.deferred {
			t.Errorf("%s %v: %d known, %t, %v", c.uids, c.res, m.KnownCount(), hasMore, err)
		}
		if m.AllowUIDs(); c.deferred {
			if _, _, ok := m.UnknownRange(); !ok {
				t.Error("the UIDs stay deferred")
			}
		}
	}
}

// FuzzResync verifies that a mailbox after Resync, and one that reads its responses, both
// have the messages of the snapshot.
func FuzzResync(f *testing.F) {
	f.Add([]byte("aaaabbbb\x00\x02\x04\x06\x06\xff\x06\x00"), uint16(6), uint16(3), false)
	f.Add([]byte{0xfe, 0xee, 6, 0, 0xce, 0x8e, 6, 0xff, 0xae}, uint16(9000), uint16(9000), true)
	f.Fuzz(func(t *testing.T, messages []byte, known, tail uint16, qresync bool) {
		if len(messages) > 64 {
			t.Skip()
		}
		enabled := imap.Extensions("")
		if qresync {
			enabled = enabled.With(imap.Qresync)
		}
		h := newHistory(messages, known, tail)
		uids, data := h.snapshot(), &SelectData{}
		data.Exists = uids.Len()
		before, other := &Mailbox{View: *h.newView(t), hasArrivals: true}, &Mailbox{View: *h.newView(t), hasArrivals: true}
		d, err := before.Compare(uids, data)
		if err != nil {
			t.Fatal(err)
		}
		if qresync && d.ExpungedUnknownCount() > 0 {
			t.Skip() // VANISHED cannot name them
		}
		if d.ExpungedUnknownCount() == 0 { // the tail that Compare recognized
			for i, uid := range h.uids[h.known : h.known+h.tail] {
				other.addUID(uint32(h.known+i+1), uid)
			}
		}
		if err := other.read(before.resyncText(&d, data, enabled)); err != nil {
			t.Fatal(err)
		}
		if first, last, ok := other.UnknownRange(); ok {
			added := uids.difference(&other.knownUIDs)
			if err := other.LearnUIDs(first, last, &added, imap.Response{Name: "OK"}); err != nil {
				t.Fatal(err)
			}
		}
		if want := uids.String() + "+0"; before.View.String() != want || other.View.String() != want {
			t.Fatalf("the mailbox has %s, a client %s, want %s", before.View.String(), other.View.String(), want)
		}
	})
}
