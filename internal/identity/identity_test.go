package identity

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestCanonicalizeUnifiesSpellings(t *testing.T) {
	for raw, want := range map[string]string{
		"alice":                "alice@example.org",
		"ALICE":                "alice@example.org",
		"Alice@EXAMPLE.org":    "alice@example.org",
		"a.b-c_d9@example.net": "a.b-c_d9@example.net",
	} {
		u, err := Canonicalize(raw, "example.org")
		if err != nil || u.String() != want {
			t.Errorf("Canonicalize(%q) = %q, %v; want %q", raw, u, err, want)
		}
		if u.Domain() != want[strings.Index(want, "@")+1:] {
			t.Errorf("Canonicalize(%q).Domain() = %q", raw, u.Domain())
		}
	}
}

func TestCanonicalizeRefusesInvalidNames(t *testing.T) {
	for _, raw := range []string{
		"", " alice", "alice ", "a b", "a\x00", "a\r\nX LOGOUT", "\u212A", "\u0130", "\u0131", "ａｌｉｃｅ", "stra\u00dfe", "e\u0301",
		"a\u200db", "\u202ea", "alice%40ex.com", "alice@ex.com@evil", "alice@ex.com.", `"alice"@ex`, "alice+x@ex", "a/b", "@", "@ex", "alice@",
		"*", "a:b", "{x}", "}{", "../", "victim*master", "\xff", strings.Repeat("a", MaxUser+1), "%{user}%u$(id){{.}}", "a\\b", "a'b", "a\"b",
	} {
		if u, err := Canonicalize(raw, ""); err == nil || !u.IsZero() {
			t.Errorf("Canonicalize(%q) = %q, want a refusal", raw, u)
		}
	}
	if _, err := Canonicalize(strings.Repeat("a", MaxUser-2), "example.org"); err == nil {
		t.Error("a name made too long by the default domain was accepted")
	}
}

func TestSecretNeverPrints(t *testing.T) {
	s := NewSecret("hunter2")
	type holder struct {
		S Secret
		P *Secret
	}
	type deep struct {
		hidden Secret
		inside []holder
	}
	h := holder{s, &s}
	d := deep{s, []holder{h}}
	js, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s) + fmt.Sprintf("%v %+v %#v %x", h, h, h, h) + string(js) +
		fmt.Sprintln(d, &d, []any{d, &d}) + fmt.Sprintf("%+v %#v", d, d)
	for _, form := range []string{"hunter2", "68756e74657232", "104 117", "0x68"} {
		if strings.Contains(all, form) {
			t.Errorf("%q shows in %s", form, all)
		}
	}
	if other := NewSecret(string([]byte("hunter2"))); other != s || other == NewSecret("hunter3") {
		t.Error("== does not compare secrets")
	}
	if s.Reveal() != "hunter2" || s.IsZero() || !(Secret{}).IsZero() {
		t.Error("the secret itself is lost")
	}
}
