package main

import (
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// verifiesPassword reports whether alice can log in with a password and this
// passwd-file.
func verifiesPassword(t testing.TB, line, password string) bool {
	t.Helper()
	a, err := auth.New(testbed.WithDefaults(auth.Config{Settings: auth.Settings{Methods: []string{auth.File}, File: auth.FileSettings{Path: write(t, "users", line)}}}), auth.Sources{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	u, err := a.Canonicalize("alice@example.org")
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(t.Context(), auth.Login{User: u, Password: identity.NewSecret(password), Mechanism: auth.CommandLogin})
	return err == nil
}

func TestHashedPasswordVerifies(t *testing.T) {
	t.Parallel()
	for _, scheme := range auth.Schemes() {
		got := imapgate(t, "right horse\n", "passwd", "--user", "Alice@Example.org", "--scheme", scheme)
		if got.status != 0 || !strings.HasPrefix(got.out, "alice@example.org:{"+scheme+"}") {
			t.Fatalf("%s: %+v", scheme, got)
		}
		if !verifiesPassword(t, got.out, "right horse") {
			t.Errorf("%s: the right password is refused", scheme)
		}
		if verifiesPassword(t, got.out, "wrong horse") {
			t.Errorf("%s: a wrong password is accepted", scheme)
		}
	}
}

func TestAPasswordFromWindowsHasNoByteOrderMark(t *testing.T) {
	t.Parallel()
	got := imapgate(t, "\xef\xbb\xbfright horse\r\n", "passwd", "--user", "alice@example.org")
	if got.status != 0 || !verifiesPassword(t, got.out, "right horse") {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "\xff\xfex\x00", "passwd"); got.status != 1 || !strings.Contains(got.err, "UTF-16") {
		t.Errorf("%+v", got)
	}
}

func TestPasswordsThatCannotBeSentAreRefused(t *testing.T) {
	for name, password := range map[string]string{
		"empty": "", "empty line": "\n", "control": "a\tb\n", "too long": strings.Repeat("x", maxPasswordBytes+10),
	} {
		if got := imapgate(t, password, "passwd", "--scheme", "plain"); got.status != 1 || got.out != "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestPasswdRefusesUnknownSchemesAndNames(t *testing.T) {
	if got := imapgate(t, "x\n", "passwd", "--scheme", "ROT13"); got.status != 1 || !strings.Contains(got.err, "ARGON2ID") {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "x\n", "passwd", "--user", "a b"); got.status != 1 || got.out != "" {
		t.Errorf("%+v", got)
	}
}
