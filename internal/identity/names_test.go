package identity

import (
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// newWidestNames allows everything that can be allowed.
func newWidestNames(t testing.TB) Names {
	t.Helper()
	return mustNames(t, NameRules{Domain: "example.org", Characters: OptionalCharacters, UTF8: true, Prefixes: map[string]string{
		"DOMAIN": "corp.example", "strip-me": "",
	}})
}

func mustNames(t testing.TB, s NameRules) Names {
	t.Helper()
	n, err := NewNames(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRulesUnifySpellings(t *testing.T) {
	n := newWidestNames(t)
	strips := mustNames(t, NameRules{Domain: "example.org", Detail: StripDetail, UTF8: true})
	for _, row := range []struct {
		names Names
		want  string
		raw   []string
	}{
		{n, "alice@corp.example", []string{
			`DOMAIN\alice`, `domain\ALICE`, `Domain\alice@corp.example`, `DOMAIN\Alice@CORP.example`, "alice@corp.example", "ａｌｉｃｅ@corp.example",
		}},
		{n, "alice@example.org", []string{`strip-me\alice`, `STRIP-ME\alice@example.org`, "alice", "ALICE@Example.ORG"}},
		{n, "o'brien@example.org", []string{"o'brien", "O'Brien@EXAMPLE.org"}},
		{n, "user+detail@example.org", []string{"User+Detail", "user+detail@example.org"}},
		{n, "r&d=1@example.org", []string{"R&D=1"}},
		{n, "j\u00f6rg@example.org", []string{"j\u00f6rg", "J\u00d6RG", "jo\u0308rg@example.org", "JO\u0308RG@EXAMPLE.ORG"}},
		{n, "j\u00f6rg@corp.example", []string{`DOMAIN\J` + "\u00d6rg"}},
		{n, "kelvin@example.org", []string{"\u212Aelvin", "kelvin"}},
		{n, "stra\u00dfe@example.org", []string{"stra\u00dfe", "STRA\u1e9eE"}},
		{n, "\u03b1\u03bb\u03af\u03ba\u03b7@example.org", []string{"\u0391\u039b\u038a\u039a\u0397"}},
		{n, "\u5c71\u7530@example.org", []string{"\u5c71\u7530"}},
		{n, "\u05d3\u05d5\u05d3@example.org", []string{"\u05d3\u05d5\u05d3"}},
		{n, "a@xn--bcher-kva.example", []string{"a@b\u00fccher.example", "a@B\u00dcCHER.example", "a@bu\u0308cher.example", "A@XN--BCHER-KVA.example", "a@b\u00fccher\u3002example"}},
		{strips, "alice@example.org", []string{"alice+lists", "alice+a+b@example.org", "ALICE+\u00f6", "alice+", "alice\uff0blists"}},
	} {
		for _, raw := range row.raw {
			if u, err := row.names.Canonicalize(raw); err != nil || u.String() != row.want {
				t.Errorf("Canonicalize(%q) = %q, %v; want %q", raw, u, err, row.want)
			}
		}
	}
}

// dangerousNames have a special meaning where a name is used.
var dangerousNames = []string{
	"", " alice", "alice ", "a b", "a\tb", "a\x00", "a\x7f", "a\r\nX LOGOUT", "a\x85b", "\u202ea", "a\u2066b", "a\u200bb", "\ufeffa", "a\u2028b", "\xff", "a\xc3",
	"alice%40ex.com", "%u", "alice@ex.com@evil", "alice\uff20evil@ex.com", "alice@ex\uff20evil", "a@", "@ex", "@", "a@ex.", "a@.ex", "a@e..x", "a@..",
	".", "..", "...", "..@ex", ".@ex", "../x", "a/b", "\uff0e\uff0e@ex", "a\uff0fb", "~root", "a\uff5eb",
	"*", "victim*master", "a\uff0ab", "a?", "[a]", "a^b", "a:b", "a;b", "a,b", "{x}", "}{", "a|b", "$(id)", "a`b", `"a"`, "<a>", "(a)", "#a", "!a",
	`a\b`, `UNKNOWN\alice`, `DOMAIN\`, `DOMAIN\a\b`, `DOMAIN\alice@example.org`, `\alice`, "DOMAIN\uff3calice",
	"a@e'x", "a@e+x", "a@e=x", "a@e&x", "a\u0300\u0301@ex ample", "\U0001f600", "\u2460", "\u00bd", "\u2764", "a\u200db", "\u0640", strings.Repeat("\u00f6", MaxUser/2+1),
}

func TestWidestRulesRefuseDangerousNames(t *testing.T) {
	n := newWidestNames(t)
	for _, raw := range dangerousNames {
		if u, err := n.Canonicalize(raw); !errors.Is(err, ErrName) || !u.IsZero() {
			t.Errorf("Canonicalize(%q) = %q, %v; want a refusal", raw, u, err)
		}
	}
	if _, err := NamesInDomain("").Canonicalize("."); err == nil {
		t.Error("a path is accepted as a name")
	}
}

func TestDisallowedNamesAreRefused(t *testing.T) {
	for raw, s := range map[string]NameRules{
		"o'brien":     {Characters: "+&="},
		"a+b":         {UTF8: true},
		"j\u00f6rg":   {Characters: OptionalCharacters},
		`DOMAIN\a`:    {Prefixes: map[string]string{"OTHER": ""}},
		"a@b\u00fc.x": {},
	} {
		if u, err := mustNames(t, s).Canonicalize(raw); err == nil {
			t.Errorf("Canonicalize(%q) = %q with %+v", raw, u, s)
		}
	}
}

func TestUnsafeRulesAreRefused(t *testing.T) {
	for field, spellings := range map[string][]NameRules{
		"characters": {{Characters: "*"}, {Characters: "+:"}, {Characters: " "}, {Characters: "{"}, {Characters: "\u00f6"}, {Characters: "/"}, {Characters: "+", Detail: StripDetail}},
		"domain":     {{Domain: "a@b"}, {Domain: "a b"}, {Domain: ".a"}, {Domain: "b\u00fc.x"}},
		"prefixes": {
			{Prefixes: map[string]string{"": "x"}}, {Prefixes: map[string]string{"a b": "x"}}, {Prefixes: map[string]string{"A": "x", "a": "y"}},
			{Prefixes: map[string]string{"A": "x@y"}}, {Prefixes: map[string]string{`A\B`: ""}},
		},
	} {
		for _, s := range spellings {
			_, err := NewNames(s)
			var wrong *NameRulesError
			if !errors.As(err, &wrong) || wrong.Field != field {
				t.Errorf("%+v: %v, want %s", s, err, field)
			}
		}
	}
}

func TestNamesDoNotChange(t *testing.T) {
	prefixes := map[string]string{"DOMAIN": "corp.example"}
	n := mustNames(t, NameRules{Prefixes: prefixes})
	prefixes["OTHER"] = "evil.example"
	if u, err := n.Canonicalize(`OTHER\a`); err == nil {
		t.Errorf("%q", u)
	}
}

// FuzzCanonUser canonicalizes names by the default rules and by wider ones.
func FuzzCanonUser(f *testing.F) {
	f.Add("Alice@EX.com", "example.org")
	f.Add("alice", "")
	f.Add("a@b@c", "x")
	f.Add(`DOMAIN\O'Brien+x`, "example.org")
	f.Add("JO\u0308RG@B\u00dcCHER.example", "example.org")
	f.Add("\u0130\u0131\u0345\u03a3", "")
	f.Add("\u05d3\u05d5\u05d31", "")
	f.Add("a+\uff20b", "")
	for _, raw := range dangerousNames {
		f.Add(raw, "example.org")
	}
	f.Fuzz(func(t *testing.T, raw, domain string) {
		if _, err := NamesInDomain("").CanonicalizeDomain(domain); err != nil {
			domain = ""
		}
		prefixes := map[string]string{"DOMAIN": "corp.example", "strip-me": ""}
		for _, s := range []NameRules{
			{Domain: domain}, {Domain: domain, Characters: OptionalCharacters, UTF8: true, Prefixes: prefixes},
			{Domain: domain, Characters: "'&=", UTF8: true, Detail: StripDetail, Prefixes: prefixes},
		} {
			n := mustNames(t, s)
			if u, err := n.Canonicalize(raw); err == nil {
				n.checkCanonical(t, raw, u)
			} else if !errors.Is(err, ErrName) || !u.IsZero() {
				t.Fatalf("%q: %q, %v", raw, u, err)
			}
		}
	})
}

// checkCanonical checks the properties of every canonical name.
func (n Names) checkCanonical(t *testing.T, raw string, u User) {
	t.Helper()
	name, s := u.String(), n.rulesOrDefault()
	for _, variant := range []string{name, upperASCII(name), lowerASCII(raw), upperASCII(raw)} {
		if again, err := n.Canonicalize(variant); err != nil || again != u {
			t.Fatalf("%q is %q, but %q is %q, %v", raw, u, variant, again, err)
		}
	}
	if len(name) > MaxUser || !utf8.ValidString(name) {
		t.Fatalf("%q is too long or no UTF-8", name)
	}
	local, domain, hasDomain := strings.Cut(name, "@")
	if hasDomain && !isASCIIName(domain) || !hasDomain && s.Domain != "" || u.Domain() != domain {
		t.Fatalf("%q has the domain %q", name, domain)
	}
	if strings.Trim(local, ".") == "" || strings.HasPrefix(domain, ".") || strings.Contains(domain, "..") {
		t.Fatalf("%q is a path", name)
	}
	for _, r := range local {
		ok := r < utf8.RuneSelf && inAlphabet(r) || strings.ContainsRune(s.Characters, r) ||
			s.UTF8 && r >= utf8.RuneSelf && (unicode.In(r, unicode.L, unicode.M, unicode.N) || isContextualRune(r))
		if !ok || strings.ContainsRune("*:/\\%{}?[]^~$|\"`<>(),;@ \r\n\x00", r) {
			t.Fatalf("%q has %q", name, r)
		}
	}
}

// isContextualRune reports whether RFC 5892 allows a character as an exception (§2.6), for some
// only in certain contexts (appendix A).
func isContextualRune(r rune) bool {
	return strings.ContainsRune("\u00b7\u0375\u05f3\u05f4\u06fd\u06fe\u0f0b\u30fb\u200c\u200d", r)
}

func upperASCII(s string) string {
	return string(mapBytes(s, func(c byte) byte {
		if c >= 'a' && c <= 'z' {
			return c - 'a' + 'A'
		}
		return c
	}))
}

func mapBytes(s string, f func(byte) byte) []byte {
	b := []byte(s)
	for i := range b {
		b[i] = f(b[i])
	}
	return b
}
