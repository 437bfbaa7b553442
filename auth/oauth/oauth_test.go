package oauth

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/tlsconf"
)

const alice = "alice@example.org"

// newVerifier returns a Verifier for a provider's client Mail; change edits its configuration.
func newVerifier(t testing.TB, p *openid.Provider, edit func(*Config)) *Verifier {
	t.Helper()
	cfg := Config{Settings: Settings{Issuer: p.Issuer, Audience: []string{openid.JWTClient}}}
	if edit != nil {
		edit(&cfg)
	}
	v, err := New(testbed.WithDefaults(cfg, "cache_ttl"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// introspectionOnly is a configuration without keys.
func introspectionOnly(p *openid.Provider, ttl time.Duration) func(*Config) {
	return func(c *Config) {
		*c = Config{
			Settings: Settings{IntrospectionURL: p.IntrospectionURL(), ClientID: openid.OpaqueClient, ClientSecret: identity.NewSecret(openid.ClientSecret), Scope: "email", CacheTTL: ttl},
		}
	}
}

func verifyToken(t testing.TB, v *Verifier, token string) (Subject, error) {
	t.Helper()
	subject, err := v.Verify(t.Context(), identity.NewSecret(token))
	if (err != nil) != (errors.Is(err, ErrInvalid) != errors.Is(err, ErrUnavailable)) {
		t.Fatalf("the error is neither ErrInvalid nor ErrUnavailable: %v", err)
	}
	if err != nil && subject != (Subject{}) {
		t.Fatalf("refused, and yet %v", subject)
	}
	if err != nil && len(token) > 20 && strings.Contains(err.Error(), token[:20]) {
		t.Fatalf("the error contains the token: %v", err)
	}
	return subject, err
}

func expectAccepted(t testing.TB, v *Verifier, token string) Subject {
	t.Helper()
	subject, err := verifyToken(t, v, token)
	if err != nil || subject.Name != alice {
		t.Fatalf("%v, %v", subject, err)
	}
	return subject
}

func expectRefused(t testing.TB, v *Verifier, token string, want error) {
	t.Helper()
	if subject, err := verifyToken(t, v, token); !errors.Is(err, want) {
		t.Fatalf("%v, %v; want %v", subject, err, want)
	}
}

// validClaims returns claims that satisfy the rules of newVerifier.
func validClaims(p *openid.Provider) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": p.Issuer, "aud": []string{openid.JWTClient}, "email": alice, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix(),
	}
}

// withClaim changes one claim; a nil value removes it.
func withClaim(all map[string]any, name string, value any) map[string]any {
	changed := maps.Clone(all)
	if changed[name] = value; value == nil {
		delete(changed, name)
	}
	return changed
}

// signToken makes a JWT of claims and further headers.
func signToken(t testing.TB, key jose.SigningKey, c map[string]any, headers map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	for name, value := range headers {
		options = options.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokensOfARealProviderAreAccepted(t *testing.T) {
	p := openid.Start(t, alice)
	for what, change := range map[string]func(*Config){
		"by signature":        nil,
		"by a signed party":   func(c *Config) { c.AuthorizedParty = []string{"other", openid.JWTClient} },
		"by both":             func(c *Config) { withIntrospection(p, c) },
		"with another claim":  func(c *Config) { c.UsernameClaim = "sub" },
		"with many audiences": func(c *Config) { c.Audience = []string{"x", openid.JWTClient} },
	} {
		t.Run(what, func(t *testing.T) {
			v, got := newVerifier(t, p, change), p.Login(t, openid.JWTClient, alice)
			for _, token := range []string{got.Access, got.ID} {
				if what == "by both" && token == got.ID {
					continue // an ID token cannot be introspected
				}
				if subject := expectAccepted(t, v, token); time.Until(subject.Expires) < time.Minute || time.Until(subject.Expires) > 2*time.Hour {
					t.Errorf("expires %v", subject.Expires)
				}
			}
		})
	}
	t.Run("by introspection", func(t *testing.T) {
		v := newVerifier(t, p, introspectionOnly(p, 0))
		subject := expectAccepted(t, v, p.Login(t, openid.OpaqueClient, alice).Access)
		if time.Until(subject.Expires) < time.Minute || time.Until(subject.Expires) > time.Hour {
			t.Errorf("expires %v", subject.Expires)
		}
	})
}

func withIntrospection(p *openid.Provider, c *Config) {
	c.IntrospectionURL, c.ClientID, c.ClientSecret = p.IntrospectionURL(), openid.JWTClient, identity.NewSecret(openid.ClientSecret)
}

func TestTokensForOthersAreRefused(t *testing.T) {
	p, other := openid.Start(t, alice), openid.Start(t, alice)
	own, opaque := p.Login(t, openid.JWTClient, alice), p.Login(t, openid.OpaqueClient, alice)
	expectRefused(t, newVerifier(t, p, nil), opaque.ID, ErrInvalid)                                                             // another client's
	expectRefused(t, newVerifier(t, p, nil), opaque.Access, ErrInvalid)                                                         // no JWT
	expectRefused(t, newVerifier(t, p, nil), other.Login(t, openid.JWTClient, alice).Access, ErrInvalid)                        // another provider's
	expectRefused(t, newVerifier(t, p, func(c *Config) { c.AuthorizedParty = []string{"x"} }), own.Access, ErrInvalid)          // another party's
	expectRefused(t, newVerifier(t, p, func(c *Config) { c.Scope = "imap" }), own.Access, ErrInvalid)                           // not for mail
	expectRefused(t, newVerifier(t, p, func(c *Config) { c.UsernameClaim = "upn" }), own.Access, ErrInvalid)                    // no user
	expectRefused(t, newVerifier(t, p, introspectionOnly(p, 0)), own.Access, ErrInvalid)                                        // not for the introspecting client
	expectRefused(t, newVerifier(t, p, introspectionOnly(p, 0)), other.Login(t, openid.OpaqueClient, alice).Access, ErrInvalid) // not this provider's
	for _, token := range []string{"", "x", "a.b.c", "..", strings.Repeat("a", identity.MaxToken+1)} {
		expectRefused(t, newVerifier(t, p, nil), token, ErrInvalid)
	}
}

func TestForgedTokensAreRefused(t *testing.T) {
	p := openid.Start(t)
	v, key, now := newVerifier(t, p, nil), p.SigningKey(), time.Now()
	expectAccepted(t, v, signToken(t, key, validClaims(p), nil))
	expectAccepted(t, v, signToken(t, key, withClaim(validClaims(p), "exp", now.Add(-Leeway/2).Unix()), nil))
	expectAccepted(t, v, signToken(t, key, withClaim(validClaims(p), "nbf", now.Add(Leeway/2).Unix()), nil))
	expectAccepted(t, v, signToken(t, key, withClaim(validClaims(p), "email_verified", "true"), nil))
	for what, c := range map[string]map[string]any{
		"no audience":             withClaim(validClaims(p), "aud", nil),
		"an empty audience":       withClaim(validClaims(p), "aud", []string{}),
		"another audience":        withClaim(validClaims(p), "aud", "mail2"),
		"audience in other case":  withClaim(validClaims(p), "aud", "MAIL"),
		"no issuer":               withClaim(validClaims(p), "iss", nil),
		"another issuer":          withClaim(validClaims(p), "iss", p.Issuer+"/"),
		"issuer in other letters": withClaim(withClaim(validClaims(p), "iss", nil), "ISS", p.Issuer),
		"no expiry":               withClaim(validClaims(p), "exp", nil),
		"expiry null":             withClaim(withClaim(validClaims(p), "exp", nil), "EXP", now.Add(time.Hour).Unix()),
		"expiry in words":         withClaim(validClaims(p), "exp", "tomorrow"),
		"expired":                 withClaim(validClaims(p), "exp", now.Add(-Leeway-time.Second).Unix()),
		"expired long ago":        withClaim(validClaims(p), "exp", 1),
		"expiry beyond time":      withClaim(validClaims(p), "exp", 1e300),
		"not valid yet":           withClaim(validClaims(p), "nbf", now.Add(Leeway+5*time.Second).Unix()),
		"nbf in words":            withClaim(validClaims(p), "nbf", "now"),
		"no name":                 withClaim(validClaims(p), "email", nil),
		"an empty name":           withClaim(validClaims(p), "email", ""),
		"a name that is a number": withClaim(validClaims(p), "email", 7),
		"several names":           withClaim(validClaims(p), "email", []string{alice}),
		"unverified":              withClaim(validClaims(p), "email_verified", false),
		"unverified in words":     withClaim(validClaims(p), "email_verified", "false"),
		"bound to a key":          withClaim(validClaims(p), "cnf", map[string]string{"jkt": "x"}),
	} {
		t.Run(what, func(t *testing.T) { expectRefused(t, v, signToken(t, key, c, nil), ErrInvalid) })
	}
	for _, typ := range []string{"logout+jwt", "dpop+jwt", "secevent+jwt", "application/x"} {
		expectRefused(t, v, signToken(t, key, validClaims(p), map[string]any{"typ": typ}), ErrInvalid)
	}
	for _, typ := range []string{"at+jwt", "application/at+jwt", "JWT"} {
		expectAccepted(t, v, signToken(t, key, validClaims(p), map[string]any{"typ": typ}))
	}
}

func TestWeakAlgorithmsAreRefused(t *testing.T) {
	p := openid.Start(t)
	v, key := newVerifier(t, p, nil), p.SigningKey()
	valid := signToken(t, key, validClaims(p), nil)
	expectAccepted(t, v, valid)
	_, body, _ := strings.Cut(valid, ".")
	payload, signature, _ := strings.Cut(body, ".")
	encode := base64.RawURLEncoding.EncodeToString
	for _, alg := range []string{"none", "None", "NONE", "", "HS256", "RS1", "RSA1_5"} {
		head := encode(fmt.Appendf(nil, `{"alg":%q,"kid":"key-1","typ":"JWT"}`, alg))
		expectRefused(t, v, head+"."+payload+".", ErrInvalid)
		expectRefused(t, v, head+"."+payload+"."+signature, ErrInvalid)
	}
	// The public key, in the forms in which an implementation might use it as a secret.
	public := &key.Key.(jose.JSONWebKey).Key.(*rsa.PrivateKey).PublicKey
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{der, []byte(base64.StdEncoding.EncodeToString(der)), public.N.Bytes()} {
		for _, alg := range []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512} {
			forged := signToken(t, jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: secret, KeyID: "key-1"}}, validClaims(p), nil)
			expectRefused(t, v, forged, ErrInvalid)
		}
	}
	foreign, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, kid := range []string{"key-1", "", "../../etc/passwd", "http://127.0.0.1:1/", "/dev/zero", "key-1\x00", strings.Repeat("k", 4000)} {
		forged := signToken(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: foreign, KeyID: kid}}, validClaims(p), nil)
		expectRefused(t, v, forged, ErrInvalid)
		// Its own key in the token's head, as RFC 7515 §4.1.3 has it.
		forged = signToken(t, jose.SigningKey{Algorithm: jose.RS256, Key: foreign}, validClaims(p), map[string]any{
			"kid": kid, "jwk": jose.JSONWebKey{Key: &foreign.PublicKey}, "jku": p.Issuer + "/keys",
		})
		expectRefused(t, v, forged, ErrInvalid)
	}
	expectAccepted(t, v, valid)
	if requests := p.RequestCount(); requests != 2 {
		t.Errorf("%d requests: forged keys cause requests to the provider", requests)
	}
}

func TestChangedTokenIsRefused(t *testing.T) {
	p := openid.Start(t)
	v := newVerifier(t, p, nil)
	valid := signToken(t, p.SigningKey(), validClaims(p), nil)
	expectAccepted(t, v, valid)
	decoded := func(token string) (all string) {
		for part := range strings.SplitSeq(token, ".") {
			text, err := base64.RawURLEncoding.DecodeString(part)
			all += fmt.Sprintf("%q %v.", text, err)
		}
		return all
	}
	for i := range valid {
		changed := []byte(valid)
		changed[i]++
		if decoded(string(changed)) != decoded(valid) { // the last bits of a part may be unused
			expectRefused(t, v, string(changed), ErrInvalid)
		}
	}
}

func TestKeysRotate(t *testing.T) {
	p := openid.Start(t, alice)
	v := newVerifier(t, p, nil)
	first := p.Login(t, openid.JWTClient, alice).Access
	expectAccepted(t, v, first)
	for range 3 { // RSA and an elliptic curve in turn
		p.RotateKey(t)
		ageKeys(v, unknownKeyInterval)
		expectAccepted(t, v, p.Login(t, openid.JWTClient, alice).Access)
	}
	expectRefused(t, v, first, ErrInvalid)
}

// ageKeys makes the keys of v older.
func ageKeys(v *Verifier, by time.Duration) {
	v.keyring.mu.Lock()
	defer v.keyring.mu.Unlock()
	older := *v.keyring.set
	older.fetchedAt = older.fetchedAt.Add(-by)
	v.keyring.set = &older
	if !v.keyring.failedAt.IsZero() {
		v.keyring.failedAt = v.keyring.failedAt.Add(-by)
	}
}

func TestWithdrawnKeyExpires(t *testing.T) {
	p := openid.Start(t, alice)
	v := newVerifier(t, p, nil)
	token := p.Login(t, openid.JWTClient, alice).Access
	expectAccepted(t, v, token)
	p.RotateKey(t)
	expectAccepted(t, v, token)
	ageKeys(v, freshTTL)
	expectRefused(t, v, token, ErrInvalid)
}

func TestUnavailableProviderNeverInvalidatesTokens(t *testing.T) {
	faults := map[string]http.HandlerFunc{
		"500":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"401":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) },
		"204":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) },
		"a page":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"null":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("null")) },
		"an array": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("[]")) },
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		},
		"a circle":  func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"a hang-up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"1 GiB":     respondEndlessly,
	}
	p := openid.Start(t, alice)
	jwt, opaque := p.Login(t, openid.JWTClient, alice).Access, p.Login(t, openid.OpaqueClient, alice).Access
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			introspecting, keyed, combined := newVerifier(t, p, introspectionOnly(p, 0)), newVerifier(t, p, nil), newVerifier(t, p, func(c *Config) { withIntrospection(p, c) })
			p.SetFault(fault)
			expectRefused(t, introspecting, opaque, ErrUnavailable)
			expectRefused(t, keyed, jwt, ErrUnavailable)
			expectRefused(t, combined, jwt, ErrUnavailable)
			expectRefused(t, keyed, jwt, ErrUnavailable) // at once, because the last fetch has just failed
			p.SetFault(nil)
			expectAccepted(t, introspecting, opaque)
			keyed.keyring.failedAt = time.Time{} // retryInterval is over
			expectAccepted(t, keyed, jwt)
			p.SetFault(fault)
			expectAccepted(t, keyed, jwt) // a known key needs no request
			ageKeys(keyed, freshTTL)
			expectAccepted(t, keyed, jwt) // a stale key is used while the provider is down
			requests := p.RequestCount()
			expectAccepted(t, keyed, jwt)
			if p.RequestCount() != requests {
				t.Error("every login waits for a provider that is down")
			}
			ageKeys(keyed, staleTTL)
			expectRefused(t, keyed, jwt, ErrUnavailable)
			p.SetFault(nil)
		})
	}
}

// respondEndlessly sends a response without end.
func respondEndlessly(w http.ResponseWriter, _ *http.Request) {
	_, _ = w.Write([]byte(`{"active":true,"issuer":"`))
	block := []byte(strings.Repeat("a", 1<<20))
	for range 1 << 10 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

func TestHangingProviderTimesOut(t *testing.T) {
	p := openid.Start(t, alice)
	release := make(chan struct{})
	defer close(release)
	jwt, opaque := p.Login(t, openid.JWTClient, alice).Access, p.Login(t, openid.OpaqueClient, alice).Access
	introspecting, keyed := newVerifier(t, p, introspectionOnly(p, 0)), newVerifier(t, p, nil)
	introspecting.introspector.client.Timeout, keyed.keyring.client.Timeout = time.Second/2, time.Second/2
	p.SetFault(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	done := make(chan error, 22)
	for range 10 {
		go func() { _, err := keyed.Verify(t.Context(), identity.NewSecret(jwt)); done <- err }()
		go func() { _, err := introspecting.Verify(t.Context(), identity.NewSecret(opaque)); done <- err }()
	}
	ctx, cancel := context.WithCancel(t.Context())
	for _, v := range []*Verifier{keyed, introspecting} {
		go func() { _, err := v.Verify(ctx, identity.NewSecret(jwt)); done <- err }()
	}
	cancel()
	for i := range 22 {
		if err := <-done; !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrInvalid) {
			t.Errorf("%v", err)
		} else if i < 2 && !errors.Is(err, context.Canceled) {
			t.Errorf("a client that disconnects waits as long as the others: %v", err)
		}
	}
}

func TestUnavailableProviderIsProbedRarely(t *testing.T) {
	p := openid.Start(t, alice)
	v := newVerifier(t, p, introspectionOnly(p, time.Minute))
	known, other := p.Login(t, openid.OpaqueClient, alice).Access, p.Login(t, openid.OpaqueClient, alice).Access
	expectAccepted(t, v, known)
	p.SetFault(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	requests := p.RequestCount()
	for range 500 {
		expectRefused(t, v, other, ErrUnavailable)
		expectAccepted(t, v, known)
	}
	// One further request is the first probe; then there is one a second.
	if n := p.RequestCount() - requests; n < breaker.Threshold+1 || n > 50 {
		t.Errorf("%d requests", n)
	}
}

func TestOnlyActiveTokensAreCached(t *testing.T) {
	p := openid.Start(t, alice)
	v := newVerifier(t, p, introspectionOnly(p, time.Hour))
	token := p.Login(t, openid.OpaqueClient, alice).Access
	first := expectAccepted(t, v, token)
	requests := p.RequestCount()
	for range 5 {
		if again := expectAccepted(t, v, token); again != first {
			t.Errorf("%v, and then %v", first, again)
		}
	}
	if p.RequestCount() != requests {
		t.Errorf("%d further requests", p.RequestCount()-requests)
	}
	for _, key := range v.introspector.cache.Keys() {
		cached, _ := v.introspector.cache.Peek(key)
		if !cached.until.Equal(first.Expires) {
			t.Errorf("cached until %v, beyond the token's %v", cached.until, first.Expires)
		}
		if strings.Contains(fmt.Sprintf("%s%v%+v", key, key, cached), token[:10]) {
			t.Error("the token itself is cached")
		}
		v.introspector.cache.Add(key, cachedSubject{cached.subject, time.Now()}) // expired
	}
	p.Revoke(t, openid.OpaqueClient, token)
	for range 3 {
		requests = p.RequestCount()
		expectRefused(t, v, token, ErrInvalid)
		if p.RequestCount() != requests+1 {
			t.Error("a negative result was cached")
		}
	}
}

func TestIntrospectionResponseIsChecked(t *testing.T) {
	now := time.Now().Unix()
	p := openid.Start(t)
	respond := func(text string) {
		p.SetFault(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
	}
	v := newVerifier(t, p, func(c *Config) {
		introspectionOnly(p, time.Hour)(c)
		c.Audience, c.AuthorizedParty = []string{"imap"}, []string{"phone"}
	})
	rest := fmt.Sprintf(`"scope":"a email b","aud":"imap","client_id":"phone","email":%q`, alice)
	for text, want := range map[string]error{
		`{"active":true,` + rest + `}`:                                 nil,
		`{"active":"true",` + rest + fmt.Sprintf(`,"exp":%d}`, now+60): nil,
		`{"active":false}`:                                             ErrInvalid,
		`{"active":false,` + rest + `}`:                                ErrInvalid,
		`{"Active":true,` + rest + `}`:                                 ErrInvalid,
		`{"active":1,` + rest + `}`:                                    ErrInvalid,
		`{"active":"yes",` + rest + `}`:                                ErrInvalid,
		`{` + rest + `}`:                                               ErrInvalid,
		`{}`:                                                           ErrInvalid,
		`{"active":true,` + rest + fmt.Sprintf(`,"exp":%d}`, now-60):                  ErrInvalid,
		`{"active":true,` + rest + fmt.Sprintf(`,"nbf":%d}`, now+60):                  ErrInvalid,
		`{"active":true,` + strings.Replace(rest, "imap", "web", 1) + `}`:             ErrInvalid,
		`{"active":true,` + strings.Replace(rest, `"aud":"imap",`, "", 1) + `}`:       ErrInvalid,
		`{"active":true,` + strings.Replace(rest, "phone", "tv", 1) + `}`:             ErrInvalid,
		`{"active":true,` + strings.Replace(rest, "a email b", "emails", 1) + `}`:     ErrInvalid,
		`{"active":true,` + rest + `,"cnf":{}}`:                                       ErrInvalid,
		`{"active":true,` + rest + `,"email_verified":false}`:                         ErrInvalid,
		`{"active":true,` + rest:                                                      ErrUnavailable,
		`{"active":true,` + rest + `,"x":"` + strings.Repeat("x", maxResponse) + `"}`: ErrUnavailable,
	} {
		respond(text)
		v.introspector.cache.Purge()
		if _, err := verifyToken(t, v, "token"); !errors.Is(err, want) {
			t.Errorf("%.200s: %v", text, err)
		}
	}
}

func TestEchoedRequestIsNotQuoted(t *testing.T) {
	p := openid.Start(t)
	const token = "t0ken-that-must-not-be-seen"
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_, _ = c.Write(append(body, "\r\n\r\n"...)) // an error does not matter
	}
	core, records := observer.New(zap.DebugLevel)
	cfg := Config{}
	introspectionOnly(p, 0)(&cfg)
	v, err := New(testbed.WithDefaults(cfg, "cache_ttl"), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	p.SetFault(echo)
	expectRefused(t, v, token, ErrUnavailable)
	for _, r := range records.All() {
		if text := fmt.Sprint(r.Message, r.ContextMap()); strings.Contains(text, token) {
			t.Errorf("the log contains it: %s", text)
		}
	}
	if _, err := v.Verify(t.Context(), identity.NewSecret(token)); strings.Contains(err.Error(), token) || records.Len() == 0 {
		t.Errorf("the error contains it, or nothing was logged: %v", err)
	}
}

func TestConcurrentLoginsFetchKeysOnce(t *testing.T) {
	p := openid.Start(t, alice)
	v, token := newVerifier(t, p, nil), p.Login(t, openid.JWTClient, alice).Access
	requests, done := p.RequestCount(), make(chan error, 100)
	for range cap(done) {
		go func() { _, err := v.Verify(t.Context(), identity.NewSecret(token)); done <- err }()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := p.RequestCount() - requests; n != 2 {
		t.Errorf("%d requests, want one for the document and one for the keys", n)
	}
}

func TestAProviderIsVerifiedByItsCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"active":true,"scope":"email","email":%q}`, alice)
	}))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	for _, c := range []struct {
		tls  *tls.Config
		url  string
		want error
	}{
		{&tls.Config{RootCAs: roots}, server.URL, nil},
		{nil, server.URL, ErrUnavailable},
		{&tls.Config{RootCAs: roots}, strings.Replace(server.URL, "127.0.0.1", "localhost", 1), ErrUnavailable}, // another name
	} {
		v, err := New(testbed.WithDefaults(Config{Settings: Settings{IntrospectionURL: c.url, Scope: "email"}, TLS: testbed.StaticTLS(c.tls)}, "cache_ttl"), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifyToken(t, v, "token"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.url, err)
		}
	}
}

func TestClientCertificateIsSent(t *testing.T) {
	ca := testbed.NewCA(t)
	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"active":true,"scope":"email","email":%q}`, alice)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	cert, key := ca.Issue(t, "gateway")
	for want, files := range map[error]tlsconf.CertFiles{nil: {Cert: cert, Key: key}, ErrUnavailable: {}} {
		c, err := tlsconf.NewClient(tlsconf.ClientConfig{CA: ca.File, Certificate: files}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		v, err := New(testbed.WithDefaults(Config{Settings: Settings{IntrospectionURL: server.URL, Scope: "email"}, TLS: c.Config}, "cache_ttl"), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifyToken(t, v, "token"); !errors.Is(err, want) {
			t.Errorf("with %v: %v", files, err)
		}
	}
}

func TestRevokedTokenIsRefusedByIntrospection(t *testing.T) {
	p := openid.Start(t, alice)
	token := p.Login(t, openid.JWTClient, alice).Access
	keyed, combined := newVerifier(t, p, nil), newVerifier(t, p, func(c *Config) { withIntrospection(p, c) })
	expectAccepted(t, keyed, token)
	expectAccepted(t, combined, token)
	p.Revoke(t, openid.JWTClient, token)
	expectAccepted(t, keyed, token) // its signature is still valid
	expectRefused(t, combined, token, ErrInvalid)
}

func TestWrongClientCredentialsAreUnavailable(t *testing.T) {
	p := openid.Start(t, alice)
	v := newVerifier(t, p, func(c *Config) {
		introspectionOnly(p, 0)(c)
		c.ClientSecret = identity.NewSecret("wrong")
	})
	expectRefused(t, v, p.Login(t, openid.OpaqueClient, alice).Access, ErrUnavailable)
}

func TestForeignDiscoveryIsRefused(t *testing.T) {
	p, other := openid.Start(t, alice), openid.Start(t, alice)
	p.SetFault(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, other.Issuer, other.Issuer+"/keys")
	})
	expectRefused(t, newVerifier(t, p, nil), other.Login(t, openid.JWTClient, alice).Access, ErrUnavailable)
	p.SetFault(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://192.0.2.1/keys"}`, p.Issuer)
	})
	expectRefused(t, newVerifier(t, p, nil), "a.b.c", ErrInvalid) // malformed: no request to the provider
	expectRefused(t, newVerifier(t, p, nil), signToken(t, p.SigningKey(), validClaims(p), nil), ErrUnavailable)
}

func TestNewSucceedsWhileProviderIsDown(t *testing.T) {
	p := openid.Start(t, alice)
	token := p.Login(t, openid.JWTClient, alice).Access
	p.Stop()
	v := newVerifier(t, p, nil)
	expectRefused(t, v, token, ErrUnavailable)
	expectRefused(t, newVerifier(t, p, introspectionOnly(p, 0)), token, ErrUnavailable)
}

func TestNewRefusesUnboundConfiguration(t *testing.T) {
	const url = "https://id.example.org/x"
	for what, cfg := range map[string]Config{
		"nothing":                        {},
		"an issuer without audience":     {Settings: Settings{Issuer: url}},
		"an introspection of anything":   {Settings: Settings{IntrospectionURL: url}},
		"an issuer in the clear":         {Settings: Settings{Issuer: "http://id.example.org", Audience: []string{"a"}}},
		"an introspection in the clear":  {Settings: Settings{IntrospectionURL: "http://10.0.0.1/", Scope: "mail"}},
		"an issuer that is no URL":       {Settings: Settings{Issuer: "id.example.org", Audience: []string{"a"}}},
		"another scheme":                 {Settings: Settings{Issuer: "ftp://id.example.org/", Audience: []string{"a"}}},
		"a password in an address":       {Settings: Settings{IntrospectionURL: "https://a:b@id.example.org/", Scope: "mail"}},
		"a negative time":                {Settings: Settings{IntrospectionURL: url, Scope: "mail", CacheTTL: -1}},
		"http that looks like loopback":  {Settings: Settings{Issuer: "http://127.0.0.1.example.org", Audience: []string{"a"}}},
		"http that looks like localhost": {Settings: Settings{Issuer: "http://localhost.example.org", Audience: []string{"a"}}},
	} {
		if _, err := New(testbed.WithDefaults(cfg, "cache_ttl"), zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "oauth: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, cfg := range []Config{
		{Settings: Settings{Issuer: url, Audience: []string{"a"}}}, {Settings: Settings{IntrospectionURL: url, Scope: "mail"}}, {Settings: Settings{IntrospectionURL: "http://[::1]:8080/", AuthorizedParty: []string{"p"}}},
	} {
		if _, err := New(testbed.WithDefaults(cfg, "cache_ttl"), zap.NewNop()); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
