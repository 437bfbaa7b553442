package command

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// summary abbreviates a row of the table: upstream, expunge policy, then B barrier, Y
// retryable, P pins, S streams, R forbidden, M needs a mailbox.
func (s *Spec) summary() string {
	b := []byte{"LAS"[s.Upstream], "ENT-"[s.ExpungePolicy]}
	for _, f := range []struct {
		on   bool
		mark byte
	}{{s.Barrier, 'B'}, {s.Retryable, 'Y'}, {s.Pins, 'P'}, {s.Streams, 'S'}, {s.Forbidden, 'R'}, {s.NeedsMailbox, 'M'}} {
		if f.on {
			b = append(b, f.mark)
		}
	}
	return string(b)
}

func TestEveryCommandHasASpec(t *testing.T) {
	seen := 0
	for row, names := range map[string]string{
		"LE":    "CAPABILITY,ID",
		"SEY":   "NOOP",
		"L-B":   "LOGOUT",
		"SEBP":  "LANGUAGE,COMPARATOR",
		"LEBR":  "STARTTLS,LOGIN,AUTHENTICATE,COMPRESS,UNAUTHENTICATE",
		"LEBY":  "ENABLE,IDLE",
		"S-BY":  "SELECT,EXAMINE",
		"AE":    "CREATE,SETANNOTATION",
		"AEB":   "DELETE,RENAME",
		"AEY":   "SUBSCRIBE,UNSUBSCRIBE,LIST,LSUB,XLIST,RLIST,RLSUB,NAMESPACE,STATUS,GETACL,SETACL,DELETEACL,LISTRIGHTS,MYRIGHTS,GETQUOTA,GETQUOTAROOT,SETQUOTA,GETMETADATA,SETMETADATA,GETANNOTATION,GENURLAUTH,URLFETCH,RESETKEY,GETJMAPACCESS,XAPPLEPUSHSERVICE,CONVERSIONS",
		"SEBS":  "APPEND",
		"SEB":   "NOTIFY",
		"SN":    "CANCELUPDATE",
		"SNY":   "ESEARCH",
		"SEYM":  "CHECK,UID EXPUNGE,UID FETCH,UID STORE,UID SEARCH,UID SORT,UID THREAD,UID CONVERT,UIDBATCHES",
		"S-BM":  "CLOSE",
		"S-BYM": "UNSELECT",
		"SEM":   "EXPUNGE,UID COPY,UID MOVE",
		"SNYM":  "FETCH,STORE,SEARCH,SORT,THREAD,CONVERT",
		"STM":   "COPY,MOVE",
		"STBSM": "REPLACE",
		"SEBSM": "UID REPLACE",
	} {
		for name := range strings.SplitSeq(names, ",") {
			seen++
			for _, line := range []string{"a " + name, "a " + strings.ToLower(name) + "\r\n", "a " + name + " 1 x\r\n"} {
				h, err := Lookup([]byte(line))
				if err != nil || h.Spec.Name != name || h.Spec.summary() != row || string(h.Tag) != "a" {
					t.Errorf("%q: %+v, %v, want %s", line, h, err, row)
				}
			}
		}
	}
	if seen != len(specByName) {
		t.Errorf("%d commands tested, of %d in the table", seen, len(specByName))
	}
}

func TestUnknownCommandPins(t *testing.T) {
	for _, name := range []string{"X", "XFER", "SYNCAPPLY", "RECONSTRUCT", "UID", "UIDX FETCH", "FETCHX", "UID UID", "UID NOOP", "UID UID FETCH",
		"LOCALAPPEND", "NO.OP", strings.Repeat("X", 33), strings.Repeat("X", 9000), "UID " + strings.Repeat("X", 40), "DONE"} {
		line := []byte("a " + name + " 1:3\r\n")
		h, err := Lookup(line)
		if name == "UID" { // "UID 1:3" is also a name of two words
			line = []byte("a UID 1-3\r\n")
			h, err = Lookup(line)
		}
		if err != nil || h.Spec.Name != "" || h.Spec.summary() != "SNBP" {
			t.Errorf("%q: %+v, %v", name, h, err)
			continue
		}
		if f, err := Parse(line); err != nil || !f.Pins || !f.UsesNumbers || f.Retryable || f.ExpungePolicy != ForbidExpunges {
			t.Errorf("%q: %+v, %v", name, f, err)
		}
	}
}

func TestOnlyAValidTagIsEchoed(t *testing.T) {
	long := strings.Repeat("t", MaxTag)
	for line, want := range map[string]struct {
		tag string
		err error
	}{
		"":                      {"", ErrTag},
		"\r\n":                  {"", ErrTag},
		" NOOP":                 {"", ErrTag},
		"* NOOP":                {"", ErrTag},
		"+ NOOP":                {"", ErrTag},
		"a+ NOOP":               {"", ErrTag},
		"a( NOOP":               {"", ErrTag},
		"a% NOOP":               {"", ErrTag},
		"a\\ NOOP":              {"", ErrTag},
		"\"a\" NOOP":            {"", ErrTag},
		"a{3} NOOP":             {"", ErrTag},
		"\xc3\xa9 NOOP":         {"", ErrTag},
		"a\tNOOP":               {"", ErrTag},
		"a\x00 NOOP":            {"", ErrTag},
		"a\x7f NOOP":            {"", ErrTag},
		long + "t NOOP\r\n":     {"", ErrTag},
		long + " NOOP\r\n":      {long, nil},
		"a]b NOOP":              {"a]b", nil},
		"a.1-[~ NOOP":           {"a.1-[~", nil},
		"a":                     {"a", ErrCommand},
		"a ":                    {"a", ErrCommand},
		"a \r\n":                {"a", ErrCommand},
		"a  NOOP":               {"a", ErrCommand},
		"a NOOP\r":              {"a", ErrCommand},
		"a NOOP\n":              {"a", ErrCommand},
		"a NOOP\t1":             {"a", ErrCommand},
		"a FETCH(1)":            {"a", ErrCommand},
		"a \"NOOP\"":            {"a", ErrCommand},
		"a {4}\r\n":             {"a", ErrCommand},
		"a NOOP{4+}\r\n":        {"a", ErrCommand},
		"a N\xc3\xb6OP":         {"a", ErrCommand},
		"a UID":                 {"a", ErrCommand},
		"a UID\r\n":             {"a", ErrCommand},
		"a uid \r\n":            {"a", ErrCommand},
		"a UID  FETCH 1 FLAGS":  {"a", ErrCommand},
		"a UID (FETCH 1 FLAGS)": {"a", ErrCommand},
	} {
		h, err := Lookup([]byte(line))
		if !errors.Is(err, want.err) || string(h.Tag) != want.tag || (h.Spec == nil) != (err != nil) {
			t.Errorf("%q: tag %q, %v", line, h.Tag, err)
		}
		if _, err := Parse([]byte(line)); !errors.Is(err, want.err) {
			t.Errorf("%q: Parse returns %v", line, err)
		}
	}
}

func TestArgumentsBeginAfterTheName(t *testing.T) {
	for line, want := range map[string]string{
		"a NOOP":                    "",
		"a NOOP \r\n":               "",
		"a NOOP  x\r\n":             " x",
		"a UID FETCH 1 FLAGS\r\n":   "1 FLAGS",
		"a uid copy 1 {5}\r\n":      "1 {5}",
		"a LOGIN x \"LOGOUT\"\r\n":  "x \"LOGOUT\"",
		"a XFOO UID FETCH\r\n":      "UID FETCH",
		"LOGOUT NOOP LOGOUT\r\n":    "LOGOUT",
		"FETCH UID FETCH 1 (UID)":   "1 (UID)",
		"a SELECT \"b LOGOUT\"\r\n": "\"b LOGOUT\"",
	} {
		if h, err := Lookup([]byte(line)); err != nil || string(h.Args) != want {
			t.Errorf("%q: %q, %v", line, h.Args, err)
		}
	}
}

func TestEnableNamesAreInUpperCase(t *testing.T) {
	f, err := Parse([]byte("a enable condstore QResync UTF8=ACCEPT X-é\r\n"))
	if err != nil || !slices.Equal(f.EnableNames, []string{"CONDSTORE", "QRESYNC", "UTF8=ACCEPT", "X-É"}) || f.Pins {
		t.Errorf("%+v, %v", f, err)
	}
	for _, args := range []string{"", " ", " \"CONDSTORE\"", " {9}\r\nCONDSTORE", " (CONDSTORE)", " A  B", strings.Repeat(" A", maxEnableNames+1)} {
		if f, err := Parse([]byte("a ENABLE" + args + "\r\n")); !errors.Is(err, ErrSyntax) || f.EnableNames != nil || f.Pins {
			t.Errorf("%q: %+v, %v", args, f, err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	for _, line := range []string{"a1 NOOP\r\n", "a1 UID FETCH 1:* (FLAGS)\r\n", "a1 XUNKNOWN\r\n"} {
		b.Run(line[:len(line)-2], func(b *testing.B) {
			raw := []byte(line)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Lookup(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
