package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// The password is pencil; few iterations keep the tests fast. The form is that of
// doveadm pw -s SCRAM-SHA-256.
const pencilHash = "{SCRAM-SHA-256}4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="

const scramSecret = "0123456789abcdef"

// newScramAuth has the users alice (SCRAM) and bob (another scheme).
func newScramAuth(t testing.TB, change ...func(*Config)) *Authenticator {
	t.Helper()
	return newScramAuthFrom(t, mapLookup(map[string]string{"alice@example.org": pencilHash, "bob@example.org": "{PLAIN}pencil"}), change...)
}

// newScramAuthFrom uses a lookup and delays no challenge.
func newScramAuthFrom(t testing.TB, lookUp PasswordLookup, change ...func(*Config)) *Authenticator {
	t.Helper()
	cfg := Config{
		Settings: Settings{Methods: []string{Redis}, NameRules: identity.NamesInDomain("example.org"), SCRAMSecret: secret(scramSecret), SCRAMIterations: 4096, Mechanisms: []string{"PLAIN", scramSHA256, scramSHA256Plus}},
	}
	for _, c := range change {
		c(&cfg)
	}
	a, err := New(testbed.WithDefaults(cfg, "methods"), Sources{Redis: lookUp}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	a.minChallengeTime = 0
	return a
}

// runScram runs an exchange with the library's client. It returns whether the client accepts
// the server, and the result of Authenticate.
func runScram(t testing.TB, a *Authenticator, c *Client, mechanism string, client *scram.ClientConversation) (clientOK bool, id Identity, err error) {
	t.Helper()
	e, ok := a.Start(mechanism, c)
	if !ok {
		return false, Identity{}, fmt.Errorf("%s is not offered", mechanism)
	}
	message, err := client.Step("")
	if err != nil {
		t.Fatal(err)
	}
	var challenge []byte
	for done := false; !done; {
		if challenge, done, err = e.Next(t.Context(), []byte(message)); err != nil {
			return false, Identity{}, err
		}
		if !done {
			if message, err = client.Step(string(challenge)); err != nil {
				return false, Identity{}, fmt.Errorf("client: %w", err)
			}
		}
	}
	if id, err = a.Authenticate(t.Context(), e.Login()); err != nil {
		return false, id, err
	}
	_, err = client.Step(string(challenge))
	return err == nil && client.Valid(), id, err
}

func newScramClient(t testing.TB, user, password string) *scram.Client {
	t.Helper()
	c, err := scram.SHA256.NewClient(user, password, "")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestScramProvesPasswordBothWays(t *testing.T) {
	a := newScramAuth(t)
	for _, user := range []string{"alice", "Alice@Example.org"} {
		believes, id, err := runScram(t, a, &Client{}, scramSHA256, newScramClient(t, user, "pencil").NewConversation())
		if err != nil || !believes || id.User().String() != "alice@example.org" || id.Method() != Redis || !id.IsVerified() {
			t.Errorf("%s: %v, %v, %v", user, believes, id, err)
		}
		if !id.Password().IsZero() || !id.Token().IsZero() {
			t.Errorf("%s: the identity of a proof has a password", user)
		}
	}
}

func TestWrongProofIsDeniedAndHasUser(t *testing.T) {
	a := newScramAuth(t)
	for _, user := range []string{"alice", "bob", "unknown"} {
		client := newScramClient(t, user, "wrong").NewConversation()
		e, _ := a.Start(scramSHA256, &Client{})
		first, _ := client.Step("")
		challenge, done, err := e.Next(t.Context(), []byte(first))
		if err != nil || done {
			t.Fatalf("%s: %v, %v", user, done, err)
		}
		final, err := client.Step(string(challenge))
		if err != nil {
			t.Fatalf("%s: %v", user, err)
		}
		challenge, done, err = e.Next(t.Context(), []byte(final))
		if err != nil || !done || challenge != nil {
			t.Errorf("%s: %q, %v, %v", user, challenge, done, err)
		}
		l := e.Login()
		if l.User.String() != user+"@example.org" {
			t.Errorf("%s: the guess has user %q and would not be counted", user, l.User)
		}
		if id, err := a.Authenticate(t.Context(), l); !errors.Is(err, ErrDenied) || id != (Identity{}) {
			t.Errorf("%s: %v, %v", user, id, err)
		}
		l.proof = nil
		if _, err := a.Authenticate(t.Context(), l); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: without a proof, %v", user, err)
		}
	}
}

// bob's password is right, but his stored hash does not work with SCRAM.
func TestOtherSchemeLooksLikeUnknownUser(t *testing.T) {
	a := newScramAuth(t)
	if _, _, err := runScram(t, a, &Client{}, scramSHA256, newScramClient(t, "bob", "pencil").NewConversation()); !errors.Is(err, ErrDenied) {
		t.Error(err)
	}
	if _, err := logIn(t, a, "bob", "pencil"); err != nil {
		t.Errorf("with the password itself: %v", err)
	}
	if _, err := logIn(t, a, "alice", "pencil"); err != nil {
		t.Errorf("the password itself, against what is stored for SCRAM: %v", err)
	}
	if _, err := logIn(t, a, "alice", "pencils"); !errors.Is(err, ErrDenied) {
		t.Errorf("a wrong one, against what is stored for SCRAM: %v", err)
	}
}

// firstChallenge returns the challenge to a first message.
func firstChallenge(t testing.TB, a *Authenticator, user string) string {
	t.Helper()
	e, _ := a.Start(scramSHA256, &Client{})
	challenge, _, err := e.Next(t.Context(), []byte("n,,n="+user+",r=nonce"))
	if err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	return string(challenge)
}

// withoutServerNonce returns a challenge without its random nonce.
func withoutServerNonce(challenge string) string { return challenge[strings.Index(challenge, ",s="):] }

func TestUnknownUserGetsStableMockChallenge(t *testing.T) {
	a, other := newScramAuth(t), newScramAuth(t)
	known := firstChallenge(t, a, "alice")
	_ = firstChallenge(t, other, "alice")
	seen := make(map[string]string)
	for _, user := range []string{"bob", "unknown", "carol@example.net", "a b", "al*ce"} {
		got := firstChallenge(t, a, user)
		if len(got) != len(known) || !strings.HasSuffix(got, ",i=4096") {
			t.Errorf("%s: %q beside %q", user, got, known)
		}
		if again := firstChallenge(t, a, user); withoutServerNonce(again) != withoutServerNonce(got) {
			t.Errorf("%s: %q, and then %q", user, got, again)
		}
		if elsewhere := firstChallenge(t, other, user); withoutServerNonce(elsewhere) != withoutServerNonce(got) {
			t.Errorf("%s: %q, and at another gateway %q", user, got, elsewhere)
		}
		if holder, twice := seen[withoutServerNonce(got)]; twice {
			t.Errorf("%s has the salt of %s", user, holder)
		}
		seen[withoutServerNonce(got)] = user
	}
	if withoutServerNonce(firstChallenge(t, a, "UnKnown@example.org")) != withoutServerNonce(firstChallenge(t, a, "unknown")) {
		t.Error("the salt of an unknown name depends on its spelling; that of a known one does not")
	}
	foreign := newScramAuth(t, func(c *Config) { c.SCRAMSecret = secret("another secret ...") })
	if withoutServerNonce(firstChallenge(t, foreign, "unknown")) == withoutServerNonce(firstChallenge(t, a, "unknown")) {
		t.Error("the salt does not depend on the secret, so a client could compute it")
	}
}

func TestFailedSourceIsUnavailableWithScram(t *testing.T) {
	refused := errors.New("connection refused")
	a, err := New(testbed.WithDefaults(Config{Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{scramSHA256}, SCRAMSecret: secret(scramSecret)}}, "methods"),
		Sources{Redis: func(context.Context, identity.User) (identity.Secret, error) { return identity.Secret{}, refused }}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	e, _ := a.Start(scramSHA256, &Client{})
	if _, _, err := e.Next(t.Context(), []byte("n,,n=alice,r=x")); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
		t.Error(err)
	}
}

func TestLookupIsCancelledWithClient(t *testing.T) {
	a, err := New(testbed.WithDefaults(Config{Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{scramSHA256}, SCRAMSecret: secret(scramSecret)}}, "methods"),
		Sources{Redis: func(ctx context.Context, _ identity.User) (identity.Secret, error) {
			<-ctx.Done()
			return identity.Secret{}, ctx.Err()
		}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e, _ := a.Start(scramSHA256, &Client{})
	if _, _, err := e.Next(ctx, []byte("n,,n=alice,r=x")); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

func TestChannelBindingIsPerConnection(t *testing.T) {
	for what, kind := range map[string]keyMaker{
		"ECDSA with SHA-256": ecdsaKey(x509.ECDSAWithSHA256), "ECDSA with SHA-384": ecdsaKey(x509.ECDSAWithSHA384),
		"ECDSA with SHA-512": ecdsaKey(x509.ECDSAWithSHA512), "RSA with SHA-256": rsaKey(x509.SHA256WithRSA),
		"RSA-PSS with SHA-384": rsaKey(x509.SHA384WithRSAPSS),
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			state, c := handshake(t, selfSigned(t, kind, nil), version)
			elsewhere, _ := handshake(t, selfSigned(t, kind, nil), version)
			for name, bind := range map[string]func(*tls.ConnectionState) (scram.ChannelBinding, error){
				"tls-exporter": scram.NewTLSExporterBinding, "tls-server-end-point": scram.NewTLSServerEndpointBinding,
			} {
				what := fmt.Sprintf("%s, %s, %s", what, tls.VersionName(version), name)
				right, err := bind(&state)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				wrong, err := bind(&elsewhere)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				a := newScramAuth(t)
				client := newScramClient(t, "alice", "pencil")
				believes, id, err := runScram(t, a, c, scramSHA256Plus, client.NewConversationWithChannelBinding(right))
				if err != nil || !believes || id.User().String() != "alice@example.org" {
					t.Errorf("%s: %v, %v", what, believes, err)
				}
				_, _, err = runScram(t, a, c, scramSHA256Plus, client.NewConversationWithChannelBinding(wrong))
				if !errors.Is(err, ErrDenied) {
					t.Errorf("%s: the binding of another connection: %v", what, err)
				}
			}
		}
	}
}

func TestACertificateWithoutADefinedHashHasNoEndPoint(t *testing.T) {
	_, c := handshake(t, selfSigned(t, ed25519Key, nil), tls.VersionTLS13)
	if _, ok := c.endpointBinding(); ok {
		t.Error("Ed25519 has an end-point binding")
	}
	if _, ok := c.exporterBinding(); !ok {
		t.Error("the exporter needs no certificate")
	}
	c.ServedCertificate = nil
	if _, ok := c.endpointBinding(); ok {
		t.Error("a connection without a certificate has an end-point binding")
	}
}

func TestDowngradeIsDetected(t *testing.T) {
	_, c := handshake(t, selfSigned(t, ecdsaKey(x509.ECDSAWithSHA256), nil), tls.VersionTLS13)
	a := newScramAuth(t)
	for what, m := range map[string]struct{ mechanism, first string }{
		"y, and -PLUS was offered": {scramSHA256, "y,,n=alice,r=x"},
		"p without -PLUS":          {scramSHA256, "p=tls-exporter,,n=alice,r=x"},
		"-PLUS without p":          {scramSHA256Plus, "n,,n=alice,r=x"},
		"-PLUS with y":             {scramSHA256Plus, "y,,n=alice,r=x"},
		"tls-unique":               {scramSHA256Plus, "p=tls-unique,,n=alice,r=x"},
		"an unknown type":          {scramSHA256Plus, "p=x,,n=alice,r=x"},
		"no type":                  {scramSHA256Plus, "p=,,n=alice,r=x"},
		"another user to act for":  {scramSHA256, "n,a=bob,n=alice,r=x"},
		"a mandatory extension":    {scramSHA256, "n,,m=x,n=alice,r=x"},
		"a nonce without end":      {scramSHA256, "n,,n=alice,r=" + strings.Repeat("x", maxScramMessage)},
		"nothing":                  {scramSHA256, ""},
		"a name that is no UTF-8":  {scramSHA256, "n,,n=\xff,r=\xff"},
		"another user, who exists": {scramSHA256, "n,a=alice,n=unknown,r=x"},
	} {
		e, _ := a.Start(m.mechanism, c)
		_, done, err := e.Next(t.Context(), []byte(m.first))
		if what == "a name that is no UTF-8" && err == nil {
			continue // treated as an unknown user
		}
		if !errors.Is(err, ErrDenied) || done || e.Login() != (Login{}) {
			t.Errorf("%s: %v, %v", what, done, err)
		}
	}
	// Where -PLUS is not offered, y is right and p is refused.
	plain := newScramAuth(t, func(c *Config) { c.Mechanisms = []string{scramSHA256} })
	e, _ := plain.Start(scramSHA256, c)
	if _, _, err := e.Next(t.Context(), []byte("y,,n=alice,r=x")); err != nil {
		t.Errorf("y where -PLUS was not offered: %v", err)
	}
	if _, ok := plain.Start(scramSHA256Plus, c); ok {
		t.Error("-PLUS is accepted and was not offered")
	}
	if _, ok := a.Start(scramSHA256Plus, &Client{}); ok {
		t.Error("-PLUS is accepted in the clear")
	}
}

func TestErrorsDoNotQuoteBinding(t *testing.T) {
	state, c := handshake(t, selfSigned(t, ecdsaKey(x509.ECDSAWithSHA256), nil), tls.VersionTLS13)
	b, _ := scram.NewTLSExporterBinding(&state)
	b.Data[0] ^= 1
	_, _, err := runScram(t, newScramAuth(t), c, scramSHA256Plus, newScramClient(t, "alice", "pencil").NewConversationWithChannelBinding(b))
	if err == nil || strings.Contains(err.Error(), fmt.Sprintf("%x", b.Data[1:5])) {
		t.Error(err)
	}
}

func TestVerifiersOutOfBoundsAreRefused(t *testing.T) {
	rest := strings.TrimPrefix(pencilHash, "{SCRAM-SHA-256}4096")
	for what, text := range map[string]string{
		"few iterations":         "4095" + rest,
		"iterations for ever":    "1000001" + rest,
		"no iterations":          rest,
		"a short salt":           "4096,c2FsdA==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=,wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
		"a key too few":          "4096,W22ZaJ0SNY7soEsUEjb6gQ==,WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
		"a key too many":         "4096" + rest + ",x",
		"PostgreSQL's own form":  "4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=",
		"base64 with stray bits": strings.Replace("4096"+rest, "gQ==", "gR==", 1),
	} {
		if _, err := parseStoredHash(secret("{SCRAM-SHA-256}" + text)); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
