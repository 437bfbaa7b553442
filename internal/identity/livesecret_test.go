package identity

import (
	"fmt"
	"strings"
	"testing"
)

func TestLiveSecretRevealsCurrentValue(t *testing.T) {
	l := NewLiveSecret("hunter1")
	s := l.Secret()
	first := s.Current()
	l.Replace("hunter2")
	if s.Reveal() != "hunter2" || s.Current() != NewSecret("hunter2") || first.Reveal() != "hunter1" || s.IsZero() || s != l.Secret() {
		t.Errorf("%q, then %q", first.Reveal(), s.Reveal())
	}
	if l.Replace(""); !s.IsZero() {
		t.Error("an empty secret is not zero")
	}
	l.Replace("hunter2")
	all := fmt.Sprintf("%v %+v %#v %v %+v %#v", s, s, s, l, l, struct{ S Secret }{s})
	if strings.Contains(all, "hunter") {
		t.Errorf("printed: %s", all)
	}
}
