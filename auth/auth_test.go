package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// writeFile puts a passwd-file into a fresh directory.
func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// open makes an Authenticator and a list of what it verifies.
func open(t *testing.T, cfg Config, redis PasswordLookup) (*Authenticator, *[]kind) {
	t.Helper()
	a, err := New(cfg, Sources{Redis: redis}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	paid := new([]kind)
	a.verifier.match = func(s stored, p identity.Secret) bool {
		*paid = append(*paid, s.kind)
		return s.match(p)
	}
	return a, paid
}

// login is what a client says with the LOGIN command.
func login(t *testing.T, a *Authenticator, user, password string) (Identity, error) {
	t.Helper()
	u, err := a.Canon(user)
	if err != nil {
		return Identity{}, err
	}
	return a.Authenticate(t.Context(), Login{User: u, Password: secret(password), Mechanism: CommandLogin})
}

// records is a lookup over a map; a missing user is unknown.
func records(m map[string]string) PasswordLookup {
	return func(_ context.Context, u identity.User) (identity.Secret, error) {
		if h, ok := m[u.String()]; ok {
			return secret(h), nil
		}
		return identity.Secret{}, fmt.Errorf("record of %s: %w", u, ErrUnknown)
	}
}

const (
	cheapSHA    = "{SHA512-CRYPT}$6$rounds=1000$5adsPOrkuZo2sRqV$pm14dMERZa/fPV3v/m71woDoatMhNDnijHsBIVPXFWipz8SIB4Bh7prWSedHfNr3Eb13gqlmT.EisU6kDhqFH/" // x
	cheapBcrypt = "{BLF-CRYPT}$2y$05$93zmq0Sridcr3J8KaxX/0.24XR2yNiEf9f7IwJsme1jFWwnVkV/iS"                                                              // pässwörd
)

func TestMethodsAreAskedInOrderAndTheFirstWhoKnowsDecides(t *testing.T) {
	file := writeFile(t, "alice:{PLAIN}in-file\n")
	redis := records(map[string]string{"alice@example.org": "{PLAIN}in-redis", "bob@example.org": "{PLAIN}bobs"})
	all := Config{Methods: []string{File, Redis, Passthrough}, Names: identity.InDomain("example.org"), File: file}
	two := Config{Methods: []string{Redis, File}, Names: identity.InDomain("example.org"), File: file}
	for _, c := range []struct {
		cfg            Config
		user, password string
		method         string // "" for denied
		decided        bool
	}{
		{all, "Alice", "in-file", File, true},
		{all, "alice", "in-redis", "", false}, // the file has decided
		{all, "bob@example.org", "bobs", Redis, true},
		{all, "bob", "wrong", "", false},
		{all, "carol", "whatever", Passthrough, false},
		{two, "ALICE@EXAMPLE.ORG", "in-redis", Redis, true},
		{two, "alice", "in-file", "", false},
		{two, "carol", "whatever", "", false},
		{two, "carol", "A", "", false}, // what a {PLAIN} decoy would match
	} {
		a, _ := open(t, c.cfg, redis)
		id, err := login(t, a, c.user, c.password)
		if c.method == "" {
			if !errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknown) || id != (Identity{}) {
				t.Errorf("%v %s %s: %v, %v", c.cfg.Methods, c.user, c.password, id, err)
			}
			continue
		}
		if err != nil || id.Method() != c.method || id.Decided() != c.decided || id.Password().Reveal() != c.password {
			t.Errorf("%v %s %s: %v, %v", c.cfg.Methods, c.user, c.password, id, err)
		}
		if want, _ := a.Canon(c.user); id.User() != want {
			t.Errorf("%s became %s", c.user, id.User())
		}
	}
}

func TestASourceThatCannotAnswerNeverPassesTheQuestionOn(t *testing.T) {
	away := errors.New("connection refused")
	for what, find := range map[string]PasswordLookup{
		"away":      func(context.Context, identity.User) (identity.Secret, error) { return identity.Secret{}, away },
		"empty":     records(map[string]string{"alice": ""}),
		"malformed": records(map[string]string{"alice": "hunter2"}),
		"absurd":    records(map[string]string{"alice": "$argon2id$v=19$m=4294967295,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + decoyKey}),
	} {
		a, paid := open(t, Config{Methods: []string{Redis, Passthrough}}, find)
		id, err := login(t, a, "alice", "hunter2")
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) || id != (Identity{}) {
			t.Errorf("%s: %v, %v", what, id, err)
		}
		if what == "away" && !errors.Is(err, away) {
			t.Errorf("the reason is lost: %v", err)
		}
		if len(*paid) != 0 || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %d verifications, %v", what, len(*paid), err)
		}
	}
}

func TestAPasswordThatCouldChangeACommandIsRefusedBeforeAnybodyIsAsked(t *testing.T) {
	asked := 0
	a, paid := open(t, Config{Methods: []string{Redis, Passthrough}}, func(context.Context, identity.User) (identity.Secret, error) {
		asked++
		return identity.Secret{}, ErrUnknown
	})
	bad := []string{"", strings.Repeat("a", maxPassword+1), "a\x7f", "\xe4\x7f"}
	for c := range 0x20 {
		bad = append(bad, "a"+string(rune(c)))
	}
	for _, p := range bad {
		if id, err := login(t, a, "alice", p); !errors.Is(err, ErrDenied) || id != (Identity{}) {
			t.Errorf("%.10q: %v, %v", p, id, err)
		}
	}
	for _, u := range []string{"", "a\r\nX LOGOUT", "victim*master", "a@b@c", "\u212a"} {
		if _, err := login(t, a, u, "x"); !errors.Is(err, ErrDenied) || !errors.Is(err, identity.ErrName) {
			t.Errorf("user %q: %v", u, err)
		}
	}
	if _, err := a.Authenticate(t.Context(), Login{Password: secret("x")}); !errors.Is(err, ErrDenied) {
		t.Errorf("nobody: %v", err)
	}
	if asked != 0 || len(*paid) != 0 {
		t.Errorf("%d lookups and %d verifications", asked, len(*paid))
	}
	for _, good := range []string{"pässwörd", " ", `"\`, strings.Repeat("a", maxPassword), "\xe4", "\xc3\x28", "\x80\x9f\xff"} {
		if id, err := login(t, a, "alice", good); err != nil || id.Password().Reveal() != good {
			t.Errorf("%.10q: %v, %v", good, id, err)
		}
	}
}

func TestAnUnknownUserPaysWhatAKnownOnePays(t *testing.T) {
	file := writeFile(t, "a:"+cheapBcrypt+"\nb:"+cheapSHA+"\nc:"+cheapSHA+"\n")
	redis := records(map[string]string{"r": cheapBcrypt})
	parsed := func(h string) kind {
		s, err := parse(secret(h))
		if err != nil {
			t.Fatal(err)
		}
		return s.kind
	}
	sha, blowfish := parsed(cheapSHA), parsed(cheapBcrypt)

	a, paid := open(t, Config{Methods: []string{File}, File: file}, nil)
	for _, user := range []string{"b", "nobody", "c", "somebody.else"} {
		*paid = nil
		if _, err := login(t, a, user, "wrong"); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", user, err)
		}
		if len(*paid) != 1 || (*paid)[0] != sha {
			t.Errorf("%s pays %d verifications", user, len(*paid))
		}
	}

	// Redis comes last, so an unknown name has to look like one of its users,
	// as soon as one has been seen; before that, like one of the file's.
	a, paid = open(t, Config{Methods: []string{File, Redis}, File: file}, redis)
	for _, step := range []struct {
		user string
		want kind
	}{{"nobody", sha}, {"r", blowfish}, {"nobody", blowfish}, {"b", sha}} {
		*paid = nil
		if _, err := login(t, a, step.user, "wrong"); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", step.user, err)
		}
		if len(*paid) != 1 || (*paid)[0] != step.want {
			t.Errorf("%s pays for %d verifications, not for one %s", step.user, len(*paid), step.want.scheme.name)
		}
	}

	// Nothing has been seen at all.
	a, paid = open(t, Config{Methods: []string{Redis}}, records(nil))
	if _, err := login(t, a, "nobody", "wrong"); !errors.Is(err, ErrDenied) || len(*paid) != 1 || (*paid)[0] != fallbackKind() {
		t.Errorf("%d verifications, %v", len(*paid), err)
	}

	// Passthrough never verifies.
	a, paid = open(t, Config{Methods: []string{File, Passthrough}, File: file}, nil)
	if _, err := login(t, a, "nobody", "wrong"); err != nil || len(*paid) != 0 {
		t.Errorf("%d verifications, %v", len(*paid), err)
	}
}

func TestNewRefusesAConfigurationThatCannotBeMeant(t *testing.T) {
	file := writeFile(t, "a:{PLAIN}a\n")
	none := records(nil)
	for what, c := range map[string]struct {
		cfg   Config
		redis PasswordLookup
	}{
		"no method":              {Config{}, none},
		"an unknown method":      {Config{Methods: []string{"ldap"}}, none},
		"a method twice":         {Config{Methods: []string{Redis, Redis}}, none},
		"passthrough not last":   {Config{Methods: []string{Passthrough, Redis}}, none},
		"redis without Redis":    {Config{Methods: []string{Redis}}, nil},
		"file without a path":    {Config{Methods: []string{File}}, none},
		"a file that is missing": {Config{Methods: []string{File}, File: file + "x"}, none},
		"a directory":            {Config{Methods: []string{File}, File: filepath.Dir(file)}, none},
		"a bad domain":           {Config{Methods: []string{File}, File: file, Names: identity.InDomain("ex ample")}, none},
		"two ats":                {Config{Methods: []string{File}, File: file, Names: identity.InDomain("a@b")}, none},
		"negative verifiers":     {Config{Methods: []string{Passthrough}, Verifiers: -1}, none},
	} {
		if _, err := New(c.cfg, Sources{Redis: c.redis}, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "auth: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestNothingThatHoldsAPasswordPrintsIt(t *testing.T) {
	const canary = "c4nary-9f31"
	file := writeFile(t, "alice:{PLAIN}"+canary+"\n")
	a, _ := open(t, Config{Methods: []string{File}, File: file}, nil)
	id, err := login(t, a, "alice", canary)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := a.file.password(t.Context(), id.User())
	if err != nil {
		t.Fatal(err)
	}
	x, _ := a.Start("PLAIN", &Client{})
	if _, _, err := x.Next(context.Background(), []byte("\x00alice\x00"+canary)); err != nil {
		t.Fatal(err)
	}
	_, denied := login(t, a, "alice", canary+"x")
	var out bytes.Buffer
	for _, v := range []any{id, &id, x, *x, hash, &hash, x.Login(), denied, a, *a.verifier} {
		fmt.Fprintf(&out, "%v %+v %#v %s %q %x %d\n", v, v, v, v, v, v, v)
	}
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), "99 52 110 97"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("%q shows in %s", form, out.String())
		}
	}
}
