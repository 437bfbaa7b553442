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
	"imapgate/internal/testbed"
)

// writeFile writes a passwd-file into a new directory.
func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newAuth returns an Authenticator and the list of the hashes that it verifies.
func newAuth(t *testing.T, cfg Config, redis PasswordLookup) (*Authenticator, *[]hashParams) {
	t.Helper()
	a, err := New(testbed.WithDefaults(cfg, "methods"), Sources{Redis: redis}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	verified := new([]hashParams)
	a.verifier.match = func(s storedHash, p identity.Secret) bool {
		*verified = append(*verified, s.params)
		return s.matches(p)
	}
	return a, verified
}

// logIn logs in as with the LOGIN command.
func logIn(t *testing.T, a *Authenticator, user, password string) (Identity, error) {
	t.Helper()
	u, err := a.Canonicalize(user)
	if err != nil {
		return Identity{}, err
	}
	return a.Authenticate(t.Context(), Login{User: u, Password: secret(password), Mechanism: CommandLogin})
}

// mapLookup returns a lookup in a map; a missing user is unknown.
func mapLookup(m map[string]string) PasswordLookup {
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

func TestFirstMethodThatKnowsUserDecides(t *testing.T) {
	file := writeFile(t, "alice:{PLAIN}in-file\n")
	redis := mapLookup(map[string]string{"alice@example.org": "{PLAIN}in-redis", "bob@example.org": "{PLAIN}bobs"})
	all := Config{Settings: Settings{Methods: []string{File, Redis, Passthrough}, NameRules: identity.NamesInDomain("example.org"), File: FileSettings{Path: file}}}
	two := Config{Settings: Settings{Methods: []string{Redis, File}, NameRules: identity.NamesInDomain("example.org"), File: FileSettings{Path: file}}}
	for _, c := range []struct {
		cfg            Config
		user, password string
		method         string // "" for denied
		decided        bool
	}{
		{all, "Alice", "in-file", File, true},
		{all, "alice", "in-redis", "", false}, // the file decides
		{all, "bob@example.org", "bobs", Redis, true},
		{all, "bob", "wrong", "", false},
		{all, "carol", "whatever", Passthrough, false},
		{two, "ALICE@EXAMPLE.ORG", "in-redis", Redis, true},
		{two, "alice", "in-file", "", false},
		{two, "carol", "whatever", "", false},
		{two, "carol", "A", "", false}, // the password of a {PLAIN} decoy
	} {
		a, _ := newAuth(t, c.cfg, redis)
		id, err := logIn(t, a, c.user, c.password)
		if c.method == "" {
			if !errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknown) || id != (Identity{}) {
				t.Errorf("%v %s %s: %v, %v", c.cfg.Methods, c.user, c.password, id, err)
			}
			continue
		}
		if err != nil || id.Method() != c.method || id.IsVerified() != c.decided || id.Password().Reveal() != c.password {
			t.Errorf("%v %s %s: %v, %v", c.cfg.Methods, c.user, c.password, id, err)
		}
		if want, _ := a.Canonicalize(c.user); id.User() != want {
			t.Errorf("%s became %s", c.user, id.User())
		}
	}
}

func TestFailedSourceIsUnavailable(t *testing.T) {
	refused := errors.New("connection refused")
	for what, find := range map[string]PasswordLookup{
		"down":      func(context.Context, identity.User) (identity.Secret, error) { return identity.Secret{}, refused },
		"empty":     mapLookup(map[string]string{"alice": ""}),
		"malformed": mapLookup(map[string]string{"alice": "hunter2"}),
		"absurd":    mapLookup(map[string]string{"alice": "$argon2id$v=19$m=4294967295,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + decoyKey}),
	} {
		a, verified := newAuth(t, Config{Settings: Settings{Methods: []string{Redis, Passthrough}}}, find)
		id, err := logIn(t, a, "alice", "hunter2")
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) || id != (Identity{}) {
			t.Errorf("%s: %v, %v", what, id, err)
		}
		if what == "down" && !errors.Is(err, refused) {
			t.Errorf("the reason is lost: %v", err)
		}
		if len(*verified) != 0 || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %d verifications, %v", what, len(*verified), err)
		}
	}
}

func TestPasswordsWithControlsAreRefusedBeforeLookup(t *testing.T) {
	lookups := 0
	a, verified := newAuth(t, Config{Settings: Settings{Methods: []string{Redis, Passthrough}}}, func(context.Context, identity.User) (identity.Secret, error) {
		lookups++
		return identity.Secret{}, ErrUnknown
	})
	bad := []string{"", strings.Repeat("a", maxPassword+1), "a\x7f", "\xe4\x7f"}
	for c := range 0x20 {
		bad = append(bad, "a"+string(rune(c)))
	}
	for _, p := range bad {
		if id, err := logIn(t, a, "alice", p); !errors.Is(err, ErrDenied) || id != (Identity{}) {
			t.Errorf("%.10q: %v, %v", p, id, err)
		}
	}
	for _, u := range []string{"", "a\r\nX LOGOUT", "victim*master", "a@b@c", "\u212a"} {
		if _, err := logIn(t, a, u, "x"); !errors.Is(err, ErrDenied) || !errors.Is(err, identity.ErrName) {
			t.Errorf("user %q: %v", u, err)
		}
	}
	if _, err := a.Authenticate(t.Context(), Login{Password: secret("x")}); !errors.Is(err, ErrDenied) {
		t.Errorf("no user: %v", err)
	}
	if lookups != 0 || len(*verified) != 0 {
		t.Errorf("%d lookups and %d verifications", lookups, len(*verified))
	}
	for _, good := range []string{"pässwörd", " ", `"\`, strings.Repeat("a", maxPassword), "\xe4", "\xc3\x28", "\x80\x9f\xff"} {
		if id, err := logIn(t, a, "alice", good); err != nil || id.Password().Reveal() != good {
			t.Errorf("%.10q: %v, %v", good, id, err)
		}
	}
}

func TestUnknownUserCostsAsMuchAsKnownUser(t *testing.T) {
	file := writeFile(t, "a:"+cheapBcrypt+"\nb:"+cheapSHA+"\nc:"+cheapSHA+"\n")
	redis := mapLookup(map[string]string{"r": cheapBcrypt})
	parsed := func(h string) hashParams {
		s, err := parseStoredHash(secret(h))
		if err != nil {
			t.Fatal(err)
		}
		return s.params
	}
	sha, blowfish := parsed(cheapSHA), parsed(cheapBcrypt)

	a, verified := newAuth(t, Config{Settings: Settings{Methods: []string{File}, File: FileSettings{Path: file}}}, nil)
	for _, user := range []string{"b", "unknown", "c", "other.user"} {
		*verified = nil
		if _, err := logIn(t, a, user, "wrong"); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", user, err)
		}
		if len(*verified) != 1 || (*verified)[0] != sha {
			t.Errorf("%s takes %d verifications", user, len(*verified))
		}
	}

	// Redis comes last, so an unknown name has to look like one of its users.
	// Before its first user has logged in, it has to look like one of the file's.
	a, verified = newAuth(t, Config{Settings: Settings{Methods: []string{File, Redis}, File: FileSettings{Path: file}}}, redis)
	for _, step := range []struct {
		user string
		want hashParams
	}{{"unknown", sha}, {"r", blowfish}, {"unknown", blowfish}, {"b", sha}} {
		*verified = nil
		if _, err := logIn(t, a, step.user, "wrong"); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", step.user, err)
		}
		if len(*verified) != 1 || (*verified)[0] != step.want {
			t.Errorf("%s takes %d verifications, want one of %s", step.user, len(*verified), step.want.scheme.name)
		}
	}

	// No source has shown a hash yet.
	a, verified = newAuth(t, Config{Settings: Settings{Methods: []string{Redis}}}, mapLookup(nil))
	if _, err := logIn(t, a, "unknown", "wrong"); !errors.Is(err, ErrDenied) || len(*verified) != 1 || (*verified)[0] != defaultHashParams() {
		t.Errorf("%d verifications, %v", len(*verified), err)
	}

	// Passthrough never verifies.
	a, verified = newAuth(t, Config{Settings: Settings{Methods: []string{File, Passthrough}, File: FileSettings{Path: file}}}, nil)
	if _, err := logIn(t, a, "unknown", "wrong"); err != nil || len(*verified) != 0 {
		t.Errorf("%d verifications, %v", len(*verified), err)
	}
}

func TestNewRefusesInvalidConfiguration(t *testing.T) {
	file := writeFile(t, "a:{PLAIN}a\n")
	none := mapLookup(nil)
	for what, c := range map[string]struct {
		cfg   Config
		redis PasswordLookup
	}{
		"no method":              {Config{}, none},
		"an unknown method":      {Config{Settings: Settings{Methods: []string{"ldap"}}}, none},
		"a method twice":         {Config{Settings: Settings{Methods: []string{Redis, Redis}}}, none},
		"passthrough not last":   {Config{Settings: Settings{Methods: []string{Passthrough, Redis}}}, none},
		"redis without Redis":    {Config{Settings: Settings{Methods: []string{Redis}}}, nil},
		"file without a path":    {Config{Settings: Settings{Methods: []string{File}}}, none},
		"a file that is missing": {Config{Settings: Settings{Methods: []string{File}, File: FileSettings{Path: file + "x"}}}, none},
		"a directory":            {Config{Settings: Settings{Methods: []string{File}, File: FileSettings{Path: filepath.Dir(file)}}}, none},
		"a bad domain":           {Config{Settings: Settings{Methods: []string{File}, NameRules: identity.NamesInDomain("ex ample"), File: FileSettings{Path: file}}}, none},
		"two ats":                {Config{Settings: Settings{Methods: []string{File}, NameRules: identity.NamesInDomain("a@b"), File: FileSettings{Path: file}}}, none},
		"negative verifiers":     {Config{Settings: Settings{Methods: []string{Passthrough}}, HashSettings: HashSettings{MaxPasswordHashes: -1}}, none},
	} {
		if _, err := New(testbed.WithDefaults(c.cfg, "methods"), Sources{Redis: c.redis}, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "auth: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestPasswordsAreNeverPrinted(t *testing.T) {
	const canary = "c4nary-9f31"
	file := writeFile(t, "alice:{PLAIN}"+canary+"\n")
	a, _ := newAuth(t, Config{Settings: Settings{Methods: []string{File}, File: FileSettings{Path: file}}}, nil)
	id, err := logIn(t, a, "alice", canary)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := a.file.lookUp(t.Context(), id.User())
	if err != nil {
		t.Fatal(err)
	}
	x, _ := a.Start("PLAIN", &Client{})
	if _, _, err := x.Next(context.Background(), []byte("\x00alice\x00"+canary)); err != nil {
		t.Fatal(err)
	}
	_, denied := logIn(t, a, "alice", canary+"x")
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
