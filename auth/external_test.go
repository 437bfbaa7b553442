package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// verifiedClient returns a client with a verified certificate.
func verifiedClient(leaf *x509.Certificate) *Client {
	return &Client{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}}
}

// mappingNames returns rules that map prefixes and strip details.
func mappingNames(t testing.TB) identity.Names {
	t.Helper()
	names, err := identity.NewNames(identity.NameRules{
		Domain: "example.org", Detail: identity.StripDetail, Prefixes: map[string]string{"corp": "example.org"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func newExternalAuth(t testing.TB, san string) *Authenticator {
	t.Helper()
	a, err := New(Config{Settings: Settings{Methods: []string{Passthrough}, NameRules: mappingNames(t), External: ExternalSettings{SAN: san}}}, Sources{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestCertificateNameIsUser(t *testing.T) {
	for what, c := range map[string]struct {
		san               string
		emails, dns, uris []string
		authzid           string
		user              string // "" for denied
	}{
		"an address":                          {"email", []string{"Alice@Example.org"}, nil, nil, "", "alice@example.org"},
		"an address among other kinds":        {"email", []string{"alice@example.org"}, []string{"bob"}, []string{"acct:carol@example.org"}, "", "alice@example.org"},
		"a host":                              {"dns", nil, []string{"printer"}, nil, "", "printer@example.org"},
		"an account":                          {"uri", nil, nil, []string{"acct:alice@example.org"}, "", "alice@example.org"},
		"as oneself":                          {"email", []string{"alice@example.org"}, nil, nil, "alice", "alice@example.org"},
		"as another user":                     {"email", []string{"alice@example.org"}, nil, nil, "bob", ""},
		"as an invalid user":                  {"email", []string{"alice@example.org"}, nil, nil, "a b", ""},
		"two addresses":                       {"email", []string{"alice@example.org", "bob@example.org"}, nil, nil, "", ""},
		"two addresses, and a choice":         {"email", []string{"alice@example.org", "bob@example.org"}, nil, nil, "alice", ""},
		"the same twice":                      {"email", []string{"alice@example.org", "alice@example.org"}, nil, nil, "", ""},
		"no address":                          {"email", nil, nil, nil, "", ""},
		"no address, and a choice":            {"email", nil, nil, nil, "alice", ""},
		"no address, but a host":              {"email", nil, []string{"alice"}, nil, "", ""},
		"no host, but an address":             {"dns", []string{"alice@example.org"}, nil, nil, "", ""},
		"an address that no account can have": {"email", []string{"al*ce@example.org"}, nil, nil, "", ""},
		"another account, with a detail":      {"email", []string{"alice+x@example.org"}, nil, nil, "", ""},
		"an account of a domain of Windows":   {"uri", nil, nil, []string{`acct:CORP\alice`}, "", ""},
		"a wildcard":                          {"dns", nil, []string{"*.example.org"}, nil, "", ""},
		"a URI that is no account":            {"uri", nil, nil, []string{"https://alice@example.org/"}, "", ""},
		"an account with escapes":             {"uri", nil, nil, []string{"acct:al%69ce@example.org"}, "", ""},
		"two accounts":                        {"uri", nil, nil, []string{"acct:alice@example.org", "acct:bob@example.org"}, "", ""},
		"an account and another URI":          {"uri", nil, nil, []string{"acct:alice@example.org", "https://example.org/"}, "", ""},
	} {
		leaf := selfSigned(t, ecdsaKey(x509.ECDSAWithSHA256), withNames(c.emails, c.dns, c.uris)).Leaf
		a := newExternalAuth(t, c.san)
		for _, first := range []bool{true, false} {
			e, ok := a.Start("external", verifiedClient(leaf))
			if !ok {
				t.Fatalf("%s: EXTERNAL is not offered", what)
			}
			messages := [][]byte{[]byte(c.authzid)}
			if !first {
				messages = append([][]byte{nil}, messages...)
			}
			_, done, err := runExchange(e, messages...)
			if c.user == "" {
				if !errors.Is(err, ErrDenied) || done || e.Login() != (Login{}) {
					t.Errorf("%s: %v, %v, %v", what, done, err, e.Login().User)
				}
				continue
			}
			id, authErr := a.Authenticate(t.Context(), e.Login())
			if err != nil || authErr != nil || id.User().String() != c.user || id.Method() != External || !id.IsVerified() || !id.Password().IsZero() {
				t.Errorf("%s: %v, %v, %v", what, id, err, authErr)
			}
		}
	}
}

// The common name of the certificate is alice@example.org throughout.
func TestExternalIsOfferedToVerifiedClientsOnly(t *testing.T) {
	leaf := selfSigned(t, ecdsaKey(x509.ECDSAWithSHA256), withNames([]string{"alice@example.org"}, nil, nil)).Leaf
	a := newExternalAuth(t, "email")
	for what, c := range map[string]*Client{
		"in the clear":           {},
		"without a certificate":  {TLS: &tls.ConnectionState{}},
		"with an unverified one": {TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}},
	} {
		if slices.Contains(a.Mechanisms(c), "EXTERNAL") {
			t.Errorf("offered %s", what)
		}
		if e, ok := a.Start("EXTERNAL", c); ok || e != nil {
			t.Errorf("accepted %s", what)
		}
	}
	if !slices.Contains(a.Mechanisms(verifiedClient(leaf)), "EXTERNAL") {
		t.Error("not offered to a client with a certificate")
	}
	if _, ok := newExternalAuth(t, "").Start("EXTERNAL", verifiedClient(leaf)); ok {
		t.Error("accepted without a certificate name type")
	}
}

func TestAListenerHasItsOwnMechanisms(t *testing.T) {
	a := newScramAuth(t, func(c *Config) {
		c.ListenerMechanisms = map[string][]string{"strict": {scramSHA256Plus, scramSHA256}, "old": {"PLAIN"}}
	})
	_, bound := handshake(t, selfSigned(t, ecdsaKey(x509.ECDSAWithSHA256), nil), tls.VersionTLS13)
	for listener, c := range map[string]struct {
		clear, tls []string
		passwords  bool
	}{
		"strict": {[]string{scramSHA256}, []string{scramSHA256Plus, scramSHA256}, false},
		"old":    {[]string{"PLAIN"}, []string{"PLAIN"}, true},
		"other":  {[]string{scramSHA256, "PLAIN"}, []string{scramSHA256Plus, scramSHA256, "PLAIN"}, true},
	} {
		inTheClear, inTLS := &Client{Listener: listener}, *bound
		inTLS.Listener = listener
		if got := a.Mechanisms(inTheClear); !slices.Equal(got, c.clear) {
			t.Errorf("%s in the clear: %q", listener, got)
		}
		if got := a.Mechanisms(&inTLS); !slices.Equal(got, c.tls) {
			t.Errorf("%s in TLS: %q", listener, got)
		}
		if a.AllowsPasswords(inTheClear) != c.passwords {
			t.Errorf("%s: passwords: %v", listener, !c.passwords)
		}
		for _, name := range allMechanisms {
			if _, ok := a.Start(name, &inTLS); ok != slices.Contains(c.tls, name) {
				t.Errorf("%s: %s is accepted: %v", listener, name, ok)
			}
		}
	}
}

func TestUnservableMechanismIsRefused(t *testing.T) {
	for what, cfg := range map[string]Config{
		"SCRAM with passthrough":    {Settings: Settings{Methods: []string{Passthrough}, Mechanisms: []string{scramSHA256}, SCRAMSecret: secret(scramSecret)}},
		"SCRAM without a secret":    {Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{scramSHA256}}},
		"tokens with passwords":     {Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{OAuthBearer}}},
		"passwords with tokens":     {Settings: Settings{Methods: []string{OAuth}, Mechanisms: []string{"PLAIN"}}},
		"EXTERNAL without a name":   {Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{"EXTERNAL"}}},
		"an unknown type of name":   {Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{"EXTERNAL"}, External: ExternalSettings{SAN: "cn"}}},
		"an unknown mechanism":      {Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{"CRAM-MD5"}}},
		"a listener's own, not all": {Settings: Settings{Methods: []string{Redis}, Mechanisms: []string{"PLAIN"}}, ListenerMechanisms: map[string][]string{"x": {"LOGIN"}}},
		"what http hides":           {Settings: Settings{Methods: []string{HTTP, Redis}}},
		"what passthrough hides":    {Settings: Settings{Methods: []string{Passthrough, OAuth}}},
	} {
		from := Sources{Redis: mapLookup(nil), HTTP: failLogin, OAuth: failToken}
		if _, err := New(cfg, from, zap.NewNop()); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
