package auth

import (
	"slices"
	"strings"
	"testing"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// secret abbreviates identity.NewSecret.
func secret(s string) identity.Secret { return identity.NewSecret(s) }

// Hashes made by doveadm pw (Dovecot 2.3.19) and by crypt(3).
var foreignHashes = []struct{ hash, password string }{
	{"{PLAIN}pässwörd", "pässwörd"},
	{"{SHA512-CRYPT}$6$GYS7YuFZYPnog.tg$S2nw/9rYBmOItz7fIieMznsI1r.eBKZJSyvDca6jbErJaqBpgJmSdQ3Bd2kwFFDZHiqOXm1tuCNLou8/Lcy7C0", "pässwörd"},
	{"{SHA512-CRYPT}$6$rounds=1000$5adsPOrkuZo2sRqV$pm14dMERZa/fPV3v/m71woDoatMhNDnijHsBIVPXFWipz8SIB4Bh7prWSedHfNr3Eb13gqlmT.EisU6kDhqFH/", "x"},
	{"{SHA256-CRYPT}$5$w46/uucFUqRT8ksg$s.9NCTpD96l3WUx8OJWPOVn0fXLaACPwsxzWzAYbOiB", "pässwörd"},
	{"{BLF-CRYPT}$2y$05$93zmq0Sridcr3J8KaxX/0.24XR2yNiEf9f7IwJsme1jFWwnVkV/iS", "pässwörd"},
	{"{CRYPT}$2y$05$dkqsJR8DclAxCeA4RHwxkO0yNT3PP0XMZqSL/sTx1YT/B1BaALsFe", "pässwörd"},
	{"{ARGON2ID}$argon2id$v=19$m=65536,t=3,p=1$0km2FiTJmKYCJzA66axr0g$JMGbTJ1Uomg+6LWPKWgjWnISZBhOv4wdwLcJveAg238", "pässwörd"},
	{"{ARGON2I}$argon2i$v=19$m=32768,t=4,p=1$ZDVJjQlG4pqZCQOdBPz6OQ$Ew6mcznYhuayYKFi8beeAJymEFIzYYG9u8g75KDO6ik", "pässwörd"},
	{"{PBKDF2}$1$/sKkBmQqDimWWE01$5000$5129fb0aa8a1e71c805d77dc5b5b20260fd235ac", "pässwörd"},
	{"{PBKDF2}$1$VfdDQj.fIyl0ZAFw$1000$98f82a50881044f7d71bf80c58f841f7d7d12859", "x"},
	{"{pbkdf2}$1$VfdDQj.fIyl0ZAFw$1000$98F82A50881044F7D71BF80C58F841F7D7D12859", "x"},
}

func TestForeignHashesVerifyWithAndWithoutTheirScheme(t *testing.T) {
	for _, f := range foreignHashes {
		forms := []string{f.hash}
		if _, bare, _ := strings.Cut(f.hash, "}"); bare[0] == '$' && bare[:3] != "$1$" {
			forms = append(forms, bare, "{crypt}"+bare)
		}
		for _, form := range forms {
			s, err := parseStoredHash(secret(form))
			if err != nil {
				t.Errorf("parse(%q): %v", form, err)
				continue
			}
			if !s.matches(secret(f.password)) {
				t.Errorf("%q does not verify", form)
			}
		}
		s, err := parseStoredHash(secret(f.hash))
		if err != nil {
			continue
		}
		for _, wrong := range []string{f.password + "x", f.password[1:]} {
			if s.matches(secret(wrong)) {
				t.Errorf("%q verifies %q", f.hash, wrong)
			}
		}
	}
}

func TestBcryptOfEveryMinorVersionVerifies(t *testing.T) {
	const rest = "$05$93zmq0Sridcr3J8KaxX/0.24XR2yNiEf9f7IwJsme1jFWwnVkV/iS"
	for _, id := range []string{"$2a", "$2b", "$2y"} {
		if s, err := parseStoredHash(secret(id + rest)); err != nil || !s.matches(secret("pässwörd")) {
			t.Errorf("%s: %v", id, err)
		}
	}
	// $2x$ marks hashes of a broken implementation.
	if _, err := parseStoredHash(secret("$2x" + rest)); err == nil {
		t.Error("$2x$ was accepted")
	}
}

func TestAHashThatCannotBeTrustedIsRefused(t *testing.T) {
	const (
		key43 = decoyKey
		sha   = "$6$rounds=%$AAAAAAAA$" + key43 + key43
		argon = "$argon2id$v=19$m=M,t=T,p=P$AAAAAAAAAAAAAAAAAAAAAA$" + key43
	)
	rounds := func(n string) string { return strings.Replace(sha, "%", n, 1) }
	costs := func(m, t, p string) string {
		return strings.NewReplacer("M", m, "T", t, "P", p).Replace(argon)
	}
	for _, ok := range []string{rounds("1000"), rounds("1000000"), costs("262144", "10", "16"), costs("8", "1", "1")} {
		if _, err := parseStoredHash(secret(ok)); err != nil {
			t.Errorf("%q is refused: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "hunter2", "{}", "{", "{}x", "{PLAIN}", "{PLAIN", "{PLAIN}a\nb", "{PLAIN}" + strings.Repeat("a", maxStoredHash),
		"{MD5}x", "{hunter2}x", "$1$abc$def", "*", "!", "!$6$", "x", "{CRYPT}ab1234567890.", "{CRYPT}{PLAIN}x",
		"{SHA512-CRYPT}" + rounds("1000001"), rounds("999"), rounds("0"), rounds("-1"), rounds(""), rounds("99999999999999999999"), rounds("1000") + "A",
		"{SHA256-CRYPT}" + rounds("1000"), "$6$$" + key43 + key43, "$5$AAAA$short", "$6$AAAAAAAAAAAAAAAAA$" + key43 + key43,
		costs("262145", "1", "1"), costs("4294967295", "1", "1"), costs("7", "1", "1"), costs("65536", "0", "1"), costs("65536", "11", "1"), costs("65536", "3", "0"), costs("65536", "3", "17"), costs("999999999999999999999", "1", "1"),
		"$argon2id$v=16$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + key43, "$argon2d$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + key43,
		"$argon2id$v=19$m=65536,t=3,p=1$$" + key43, "$argon2id$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AA", "$argon2id$v=19$m=65536,t=3,p=1,k=1$AAAAAAAAAAAAAAAAAAAAAA$" + key43,
		"$argon2id$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAA$" + key43,
		"$2b$03$AAAAAAAAAAAAAAAAAAAAA." + key43[:31], "$2b$15$AAAAAAAAAAAAAAAAAAAAA." + key43[:31], "$2b$31$AAAAAAAAAAAAAAAAAAAAA." + key43[:31], "$2b$5$AAAAAAAAAAAAAAAAAAAAA." + key43[:31], "$2b$05$AAAA",
		"{PBKDF2}$1$AAAA$0$" + strings.Repeat("0", 40), "{PBKDF2}$1$AAAA$5000001$" + strings.Repeat("0", 40), "{PBKDF2}$1$AAAA$1000$" + strings.Repeat("0", 38), "{PBKDF2}$1$$1000$" + strings.Repeat("0", 40), "{PBKDF2}$2$AAAA$1000$" + strings.Repeat("0", 40),
	} {
		s, err := parseStoredHash(secret(bad))
		if err == nil {
			t.Errorf("parse(%q) is accepted as %s", bad, s.params.scheme.name)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error quotes the hash: %v", err)
		}
	}
}

func TestEverySchemeHashesSaltsAndVerifies(t *testing.T) {
	for _, name := range Schemes() {
		one, err := Hash(strings.ToLower(name), secret("pässwörd"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if two, err := Hash(name, secret("pässwörd")); err != nil || one == two && name != "PLAIN" {
			t.Errorf("%s: the same salt twice: %v", name, err)
		}
		s, err := parseStoredHash(secret(one))
		if err != nil {
			t.Fatalf("parse of the %s from Hash: %v", name, err)
		}
		if !strings.HasPrefix(one, "{"+name+"}") || s.params.scheme.name != name || !s.matches(secret("pässwörd")) || s.matches(secret("pässword")) {
			t.Errorf("%s: the hash from Hash does not verify as it should", name)
		}
	}
}

func TestHashRefusesWhatCouldNeverLogIn(t *testing.T) {
	for _, p := range []string{"", "a\x00b", "a\r\nb", "\x7f", strings.Repeat("a", maxPassword+1)} {
		if _, err := Hash("SHA512-CRYPT", secret(p)); err == nil {
			t.Errorf("Hash accepted %.20q", p)
		}
	}
	if _, err := Hash("BLF-CRYPT", secret(strings.Repeat("a", 73))); err == nil {
		t.Error("bcrypt silently truncates a password")
	}
	if _, err := Hash("MD5", secret("x")); err == nil || !strings.Contains(err.Error(), "ARGON2ID") {
		t.Errorf("an unknown scheme: %v", err)
	}
}

// A decoy needs the parameters that it stands for, or an unknown user takes another
// time than a known one. No password may match it.
func TestDecoyHasSameParamsAndNeverMatches(t *testing.T) {
	for _, f := range foreignHashes {
		s, err := parseStoredHash(secret(f.hash))
		if err != nil {
			t.Fatal(err)
		}
		d := s.params.newDecoy()
		again, err := parseStoredHash(secret("{" + d.params.scheme.name + "}" + d.hash.Reveal()))
		if err != nil {
			t.Fatalf("decoy %s: %v", d.hash.Reveal(), err)
		}
		if again.params != s.params {
			t.Errorf("decoy of %+v is %+v", s.params.costs, again.params.costs)
		}
		if s.params.scheme.name != "PLAIN" && d.matches(secret(f.password)) {
			t.Errorf("%s matches its own text", d.hash.Reveal())
		}
	}
	if d := defaultHashParams().newDecoy(); d.params.scheme.name != Schemes()[0] || d.matches(secret("x")) {
		t.Error("the fallback is not the first scheme, or matches")
	}
}

// doveadm runs `doveadm pw`.
func doveadm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := testbed.Command(t, "doveadm", "dovecot-core", append([]string{"pw"}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func TestHashesAreInterchangeableWithDovecot(t *testing.T) {
	for _, name := range Schemes() {
		passwords := []string{`pässwörd a"b\c {}$ %u`}
		if name == "BLF-CRYPT" {
			passwords = append(passwords, strings.Repeat("z", 72))
		}
		for _, p := range passwords {
			ours, err := Hash(name, secret(p))
			if err != nil {
				t.Fatal(err)
			}
			if out, err := doveadm(t, "-t", ours, "-p", p); err != nil || !strings.HasSuffix(out, "(verified)") {
				t.Errorf("doveadm refuses the %s from Hash of %.10q: %s", name, p, out)
			}
			if out, err := doveadm(t, "-t", ours, "-p", p+"x"); err == nil && !(name == "BLF-CRYPT" && len(p) == 72) {
				t.Errorf("doveadm accepts a wrong password for the %s from Hash: %s", name, out)
			}
			theirs, err := doveadm(t, "-s", name, "-p", p)
			if err != nil {
				t.Fatalf("doveadm pw -s %s: %s", name, theirs)
			}
			s, err := parseStoredHash(secret(theirs))
			if err != nil || !s.matches(secret(p)) || s.matches(secret("x"+p)) {
				t.Errorf("Dovecot's %s of %.10q does not verify: %v", name, p, err)
			}
		}
	}
}

func TestLongPasswordsMatchAsInDovecot(t *testing.T) {
	// bcrypt uses 72 bytes; both sides must ignore the same rest.
	long := strings.Repeat("0123456789", 10)
	for _, name := range []string{"BLF-CRYPT", "SHA512-CRYPT", "PBKDF2"} {
		theirs, err := doveadm(t, "-s", name, "-p", long)
		if err != nil {
			t.Fatalf("doveadm pw -s %s: %s", name, theirs)
		}
		s, err := parseStoredHash(secret(theirs))
		if err != nil || !s.matches(secret(long)) {
			t.Errorf("%s of 100 bytes does not verify: %v", name, err)
		}
		cut := s.matches(secret(long[:72]))
		if out, err := doveadm(t, "-t", theirs, "-p", long[:72]); cut != (err == nil) {
			t.Errorf("%s: the first 72 bytes match here: %v, in Dovecot: %s", name, cut, out)
		}
	}
}

func TestHistogramTracksMajorityAndIsBounded(t *testing.T) {
	at := func(rounds int) hashParams { return hashParams{&schemes[2], [maxCosts]int{rounds}} }
	c := histogram{halveAt: 64}
	if c.mostFrequent().scheme != nil {
		t.Error("an empty histogram has parameters")
	}
	for range 1000 {
		c.add(at(1000))
	}
	if n := c.counts[at(1000)]; n >= 64 {
		t.Errorf("the count is %d", n)
	}
	for range 64 {
		c.add(at(2000))
	}
	if c.mostFrequent() != at(2000) {
		t.Error("a new majority does not lead")
	}
	for i := range 10 * maxHistogramEntries {
		c.add(at(3000 + i))
	}
	if len(c.counts) > maxHistogramEntries {
		t.Errorf("%d entries", len(c.counts))
	}
	if !slices.Contains([]hashParams{at(1000), at(2000)}, c.mostFrequent()) {
		t.Error("rare parameters displaced the frequent ones")
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, name := range Schemes() {
		h, err := Hash(name, secret("pässwörd"))
		if err != nil {
			b.Fatal(err)
		}
		known, err := parseStoredHash(secret(h))
		if err != nil {
			b.Fatal(err)
		}
		for what, s := range map[string]storedHash{"known": known, "unknown": known.params.newDecoy()} {
			b.Run(name+"/"+what, func(b *testing.B) {
				for b.Loop() {
					s.matches(secret("wrong"))
				}
			})
		}
	}
}
