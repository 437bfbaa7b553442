package mailbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/imap"
)

func TestAddTextParsesServerSets(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"1", "1"},
		{"1:5,7,9:12", "1:5,7,9:12"},
		{"12:9,5:1", "1:5,9:12"},
		{"1:3,4,5:6", "1:6"},
		{"5,3,4", "3:5"},
		{"1:10,3:4", "1:10"},
		{"65535:65536,131072,4294967294", "65535:65536,131072,4294967294"},
		{"1:200000,200002", "1:200000,200002"},
	} {
		if got := parseUIDSet(t, c.text).String(); got != c.want {
			t.Errorf("%s is %s, want %s", c.text, got, c.want)
		}
	}
	for _, text := range []string{
		"", ",", "1,", ",1", "0", "01", "1:0", "*", "1:*", "1:2:3", "1 ", "-1", "+1", "1:", ":1", "a",
		"4294967295", "4294967296", "99999999999999999999", "1:4294967294,1",
		strings.Repeat("1,", maxSetText/2) + "1",
	} {
		if err := new(UIDSet).AddText([]byte(text)); !errors.Is(err, imap.ErrSet) {
			t.Errorf("%.30q was accepted: %v", text, err)
		}
	}
}

func TestWholeUIDSpaceIsOneRun(t *testing.T) {
	u := parseUIDSet(t, "1:4294967294")
	if u.Len() != maxUID || u.Max() != maxUID || u.bitmap != nil {
		t.Fatalf("%d UIDs up to %d", u.Len(), u.Max())
	}
	u.Add(0)
	u.Add(maxUID + 1)
	if u.Len() != maxUID || u.Contains(0) || u.Contains(maxUID+1) || !u.Contains(maxUID) {
		t.Errorf("%d UIDs", u.Len())
	}
}

// normalizeRanges returns the set as ascending runs. ok is false for sets of more than limit
// UIDs, which no mailbox has.
func normalizeRanges(set imap.Set, limit uint64) (runs imap.Set, ok bool) {
	total := uint64(0)
	for _, r := range set {
		if total += uint64(r.Last-r.First) + 1; total > limit {
			return nil, false
		}
	}
	set = slices.Clone(set)
	slices.SortFunc(set, func(a, b imap.Range) int { return int(int64(a.First) - int64(b.First)) })
	for _, r := range set {
		if n := len(runs); n > 0 && r.First <= runs[n-1].Last+1 {
			runs[n-1].Last = max(runs[n-1].Last, r.Last)
		} else {
			runs = append(runs, r)
		}
	}
	return runs, true
}

func hasStar(set imap.Set) bool {
	return slices.ContainsFunc(set, func(r imap.Range) bool { return r.Last == imap.Star })
}

// FuzzUIDSet verifies that AddText reads what imap.ParseSet reads, except *, and that vanish
// removes the UIDs of a set from a view.
func FuzzUIDSet(f *testing.F) {
	f.Add("1:5,7,9:12", "3,12:9")
	f.Add("65000:66000,5,131071:131073", "65536")
	f.Add("1:*", "0")
	f.Add("1:70000,70002,70004:90000", "2:69999,70003:70010")
	f.Fuzz(func(t *testing.T, a, b string) {
		const limit = 1 << 18
		set, parseErr := imap.ParseSet(a)
		star := hasStar(set)
		if strings.Count(a, ",") >= imap.MaxRanges {
			t.Skip()
		}
		runs, ok := normalizeRanges(set, limit)
		if parseErr == nil && !star && !ok {
			t.Skip()
		}
		u := new(UIDSet)
		if err := u.AddText([]byte(a)); (err != nil) != (parseErr != nil || star) {
			t.Fatalf("%q: %v, but %v", a, err, parseErr)
		} else if err != nil {
			return
		}
		if u.String() != runs.String() {
			t.Fatalf("%q is %q, want %q", a, u, runs)
		}
		v := &View{exists: u.Len()}
		if err := v.addUIDs(v.KnownCount()+1, u); err != nil {
			t.Fatal(err)
		}
		out, parseErr := imap.ParseSet(b)
		if _, ok := normalizeRanges(out, limit); !ok || parseErr != nil || hasStar(out) {
			return
		}
		if _, err := v.vanish([]byte(b)); err != nil {
			t.Fatal(err)
		}
		left := new(UIDSet)
		for first, last := range u.runs {
			for uid := first; uid <= last; uid++ {
				if !out.Contains(uid, 0) {
					left.Add(uid)
				}
			}
		}
		if v.knownUIDs.String() != left.String() || v.Exists() != left.Len() {
			t.Fatalf("%q without %q is %q, want %q", a, b, v, left)
		}
	})
}
