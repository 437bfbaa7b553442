package imap

import "testing"

func TestExtensionSetsAreCanonical(t *testing.T) {
	a := Extensions("").With("utf8=accept", "Condstore", "CONDSTORE")
	b := Extensions("").With("CONDSTORE").With("UTF8=ACCEPT")
	if a != b || a != "CONDSTORE UTF8=ACCEPT" || !a.Has("UTF8=ACCEPT") || a.Has("UTF8") {
		t.Errorf("%q and %q", a, b)
	}
	if q := Extensions("").With(Qresync); q != "CONDSTORE QRESYNC" || len(Extensions(Condstore).Without(q)) != 0 || len(q.Without(a)) == 0 {
		t.Errorf("QRESYNC is %q", q)
	}
	if less := a.With(Qresync).Without(a); len(less) != 1 || less[0] != Qresync {
		t.Errorf("less is %q", less)
	}
	if e := Extensions("").With(); e != "" || len(e.Without("")) != 0 {
		t.Errorf("nothing is %q", e)
	}
}
