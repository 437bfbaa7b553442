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

// open makes a Verifier for a provider's client Mail; change edits its
// configuration.
func open(t testing.TB, p *openid.Provider, change func(*Config)) *Verifier {
	t.Helper()
	cfg := Config{Issuer: p.Issuer, Audience: []string{openid.Mail}}
	if change != nil {
		change(&cfg)
	}
	v, err := New(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// introspects is a configuration that only asks.
func introspects(p *openid.Provider, ttl time.Duration) func(*Config) {
	return func(c *Config) {
		*c = Config{
			IntrospectionURL: p.Introspection(), ClientID: openid.Opaque, ClientSecret: identity.NewSecret(openid.Secret),
			Scope: "email", CacheTTL: ttl,
		}
	}
}

func verify(t testing.TB, v *Verifier, token string) (Subject, error) {
	t.Helper()
	who, err := v.Verify(t.Context(), identity.NewSecret(token))
	if (err != nil) != (errors.Is(err, ErrInvalid) != errors.Is(err, ErrUnavailable)) {
		t.Fatalf("an error is one of two things: %v", err)
	}
	if err != nil && who != (Subject{}) {
		t.Fatalf("refused, and yet %v", who)
	}
	if err != nil && len(token) > 20 && strings.Contains(err.Error(), token[:20]) {
		t.Fatalf("the token shows in %v", err)
	}
	return who, err
}

func accepts(t testing.TB, v *Verifier, token string) Subject {
	t.Helper()
	who, err := verify(t, v, token)
	if err != nil || who.Name != alice {
		t.Fatalf("%v, %v", who, err)
	}
	return who
}

func refuses(t testing.TB, v *Verifier, token string, want error) {
	t.Helper()
	if who, err := verify(t, v, token); !errors.Is(err, want) {
		t.Fatalf("%v, %v; want %v", who, err, want)
	}
}

// good are claims that the rules of open are satisfied with.
func good(p *openid.Provider) map[string]any {
	now := time.Now()
	return map[string]any{
		"iss": p.Issuer, "aud": []string{openid.Mail}, "email": alice, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix(),
	}
}

// with changes one claim; a nil value takes it away.
func with(all map[string]any, name string, value any) map[string]any {
	changed := maps.Clone(all)
	if changed[name] = value; value == nil {
		delete(changed, name)
	}
	return changed
}

// sign makes a JWT of claims and further headers.
func sign(t testing.TB, key jose.SigningKey, said map[string]any, headers map[string]any) string {
	t.Helper()
	options := (&jose.SignerOptions{}).WithType("JWT")
	for name, value := range headers {
		options = options.WithHeader(jose.HeaderKey(name), value)
	}
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(said)
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
		"by a signed party":   func(c *Config) { c.Parties = []string{"other", openid.Mail} },
		"by both":             func(c *Config) { both(p, c) },
		"with another claim":  func(c *Config) { c.Claim = "sub" },
		"with many audiences": func(c *Config) { c.Audience = []string{"x", openid.Mail} },
	} {
		t.Run(what, func(t *testing.T) {
			v, got := open(t, p, change), p.Login(t, openid.Mail, alice)
			for _, token := range []string{got.Access, got.ID} {
				if what == "by both" && token == got.ID {
					continue // an ID token cannot be introspected
				}
				if who := accepts(t, v, token); time.Until(who.Expires) < time.Minute || time.Until(who.Expires) > 2*time.Hour {
					t.Errorf("expires %v", who.Expires)
				}
			}
		})
	}
	t.Run("by introspection", func(t *testing.T) {
		v := open(t, p, introspects(p, 0))
		who := accepts(t, v, p.Login(t, openid.Opaque, alice).Access)
		if time.Until(who.Expires) < time.Minute || time.Until(who.Expires) > time.Hour {
			t.Errorf("expires %v", who.Expires)
		}
	})
}

func both(p *openid.Provider, c *Config) {
	c.IntrospectionURL, c.ClientID, c.ClientSecret = p.Introspection(), openid.Mail, identity.NewSecret(openid.Secret)
}

func TestTokensForSomebodyElseAreRefused(t *testing.T) {
	p, other := openid.Start(t, alice), openid.Start(t, alice)
	mine, opaque := p.Login(t, openid.Mail, alice), p.Login(t, openid.Opaque, alice)
	refuses(t, open(t, p, nil), opaque.ID, ErrInvalid)                                                 // another client's
	refuses(t, open(t, p, nil), opaque.Access, ErrInvalid)                                             // no JWT
	refuses(t, open(t, p, nil), other.Login(t, openid.Mail, alice).Access, ErrInvalid)                 // another provider's
	refuses(t, open(t, p, func(c *Config) { c.Parties = []string{"x"} }), mine.Access, ErrInvalid)     // another party's
	refuses(t, open(t, p, func(c *Config) { c.Scope = "imap" }), mine.Access, ErrInvalid)              // not for mail
	refuses(t, open(t, p, func(c *Config) { c.Claim = "upn" }), mine.Access, ErrInvalid)               // nobody's
	refuses(t, open(t, p, introspects(p, 0)), mine.Access, ErrInvalid)                                 // not for who asks
	refuses(t, open(t, p, introspects(p, 0)), other.Login(t, openid.Opaque, alice).Access, ErrInvalid) // not this provider's
	for _, token := range []string{"", "x", "a.b.c", "..", strings.Repeat("a", identity.MaxToken+1)} {
		refuses(t, open(t, p, nil), token, ErrInvalid)
	}
}

func TestForgedAndSpoiltTokensAreRefused(t *testing.T) {
	p := openid.Start(t)
	v, key, now := open(t, p, nil), p.Key(), time.Now()
	accepts(t, v, sign(t, key, good(p), nil))
	accepts(t, v, sign(t, key, with(good(p), "exp", now.Add(-Leeway/2).Unix()), nil))
	accepts(t, v, sign(t, key, with(good(p), "nbf", now.Add(Leeway/2).Unix()), nil))
	accepts(t, v, sign(t, key, with(good(p), "email_verified", "true"), nil))
	for what, said := range map[string]map[string]any{
		"no audience":             with(good(p), "aud", nil),
		"an empty audience":       with(good(p), "aud", []string{}),
		"another audience":        with(good(p), "aud", "mail2"),
		"audience in other case":  with(good(p), "aud", "MAIL"),
		"no issuer":               with(good(p), "iss", nil),
		"another issuer":          with(good(p), "iss", p.Issuer+"/"),
		"issuer in other letters": with(with(good(p), "iss", nil), "ISS", p.Issuer),
		"no expiry":               with(good(p), "exp", nil),
		"expiry null":             with(with(good(p), "exp", nil), "EXP", now.Add(time.Hour).Unix()),
		"expiry in words":         with(good(p), "exp", "tomorrow"),
		"expired":                 with(good(p), "exp", now.Add(-Leeway-time.Second).Unix()),
		"expired long ago":        with(good(p), "exp", 1),
		"expiry beyond time":      with(good(p), "exp", 1e300),
		"not valid yet":           with(good(p), "nbf", now.Add(Leeway+5*time.Second).Unix()),
		"nbf in words":            with(good(p), "nbf", "now"),
		"no name":                 with(good(p), "email", nil),
		"an empty name":           with(good(p), "email", ""),
		"a name that is a number": with(good(p), "email", 7),
		"several names":           with(good(p), "email", []string{alice}),
		"unverified":              with(good(p), "email_verified", false),
		"unverified in words":     with(good(p), "email_verified", "false"),
		"bound to a key":          with(good(p), "cnf", map[string]string{"jkt": "x"}),
	} {
		t.Run(what, func(t *testing.T) { refuses(t, v, sign(t, key, said, nil), ErrInvalid) })
	}
	for _, typ := range []string{"logout+jwt", "dpop+jwt", "secevent+jwt", "application/x"} {
		refuses(t, v, sign(t, key, good(p), map[string]any{"typ": typ}), ErrInvalid)
	}
	for _, typ := range []string{"at+jwt", "application/at+jwt", "JWT"} {
		accepts(t, v, sign(t, key, good(p), map[string]any{"typ": typ}))
	}
}

func TestAlgorithmsThatProveNothingAreRefused(t *testing.T) {
	p := openid.Start(t)
	v, key := open(t, p, nil), p.Key()
	honest := sign(t, key, good(p), nil)
	accepts(t, v, honest)
	_, body, _ := strings.Cut(honest, ".")
	payload, signature, _ := strings.Cut(body, ".")
	encode := base64.RawURLEncoding.EncodeToString
	for _, alg := range []string{"none", "None", "NONE", "", "HS256", "RS1", "RSA1_5"} {
		head := encode(fmt.Appendf(nil, `{"alg":%q,"kid":"key-1","typ":"JWT"}`, alg))
		refuses(t, v, head+"."+payload+".", ErrInvalid)
		refuses(t, v, head+"."+payload+"."+signature, ErrInvalid)
	}
	// The public key, in the forms in which somebody might take it for a secret.
	public := &key.Key.(jose.JSONWebKey).Key.(*rsa.PrivateKey).PublicKey
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{der, []byte(base64.StdEncoding.EncodeToString(der)), public.N.Bytes()} {
		for _, alg := range []jose.SignatureAlgorithm{jose.HS256, jose.HS384, jose.HS512} {
			forged := sign(t, jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: secret, KeyID: "key-1"}}, good(p), nil)
			refuses(t, v, forged, ErrInvalid)
		}
	}
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, kid := range []string{"key-1", "", "../../etc/passwd", "http://127.0.0.1:1/", "/dev/zero", "key-1\x00", strings.Repeat("k", 4000)} {
		forged := sign(t, jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: stranger, KeyID: kid}}, good(p), nil)
		refuses(t, v, forged, ErrInvalid)
		// Its own key in the token's head, as RFC 7515 §4.1.3 has it.
		forged = sign(t, jose.SigningKey{Algorithm: jose.RS256, Key: stranger}, good(p), map[string]any{
			"kid": kid, "jwk": jose.JSONWebKey{Key: &stranger.PublicKey}, "jku": p.Issuer + "/keys",
		})
		refuses(t, v, forged, ErrInvalid)
	}
	accepts(t, v, honest)
	if asked := p.Asked(); asked != 2 {
		t.Errorf("the provider was asked %d times: forged keys cost it something", asked)
	}
}

func TestNothingIsBelievedOfAChangedToken(t *testing.T) {
	p := openid.Start(t)
	v := open(t, p, nil)
	honest := sign(t, p.Key(), good(p), nil)
	accepts(t, v, honest)
	decoded := func(token string) (all string) {
		for part := range strings.SplitSeq(token, ".") {
			text, err := base64.RawURLEncoding.DecodeString(part)
			all += fmt.Sprintf("%q %v.", text, err)
		}
		return all
	}
	for i := range honest {
		changed := []byte(honest)
		changed[i]++
		if decoded(string(changed)) != decoded(honest) { // the last bits of a part may stand for nothing
			refuses(t, v, string(changed), ErrInvalid)
		}
	}
}

func TestKeysRotate(t *testing.T) {
	p := openid.Start(t, alice)
	v := open(t, p, nil)
	first := p.Login(t, openid.Mail, alice).Access
	accepts(t, v, first)
	for range 3 { // RSA and an elliptic curve in turn
		p.Rotate(t)
		age(v, askAgain)
		accepts(t, v, p.Login(t, openid.Mail, alice).Access)
	}
	refuses(t, v, first, ErrInvalid)
}

// age makes the keys that v knows older.
func age(v *Verifier, by time.Duration) {
	v.keys.mu.Lock()
	defer v.keys.mu.Unlock()
	older := *v.keys.set
	older.read = older.read.Add(-by)
	v.keys.set = &older
	if !v.keys.failed.IsZero() {
		v.keys.failed = v.keys.failed.Add(-by)
	}
}

func TestAWithdrawnKeyIsForgottenInTime(t *testing.T) {
	p := openid.Start(t, alice)
	v := open(t, p, nil)
	token := p.Login(t, openid.Mail, alice).Access
	accepts(t, v, token)
	p.Rotate(t)
	accepts(t, v, token)
	age(v, freshFor)
	refuses(t, v, token, ErrInvalid)
}

func TestAProviderThatIsAwayNeverMakesATokenLookWrong(t *testing.T) {
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
		"1 GiB":     flood,
	}
	p := openid.Start(t, alice)
	jwt, opaque := p.Login(t, openid.Mail, alice).Access, p.Login(t, openid.Opaque, alice).Access
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			asks, looks, two := open(t, p, introspects(p, 0)), open(t, p, nil), open(t, p, func(c *Config) { both(p, c) })
			p.Fault(fault)
			refuses(t, asks, opaque, ErrUnavailable)
			refuses(t, looks, jwt, ErrUnavailable)
			refuses(t, two, jwt, ErrUnavailable)
			refuses(t, looks, jwt, ErrUnavailable) // at once: it was tried a moment ago
			p.Fault(nil)
			accepts(t, asks, opaque)
			looks.keys.failed = time.Time{} // the moment is over
			accepts(t, looks, jwt)
			p.Fault(fault)
			accepts(t, looks, jwt) // known keys are enough
			age(looks, freshFor)
			accepts(t, looks, jwt) // old ones too, while there are no newer
			asked := p.Asked()
			accepts(t, looks, jwt)
			if p.Asked() != asked {
				t.Error("everybody who logs in waits for a provider that is away")
			}
			age(looks, staleFor)
			refuses(t, looks, jwt, ErrUnavailable)
			p.Fault(nil)
		})
	}
}

// flood answers without end.
func flood(w http.ResponseWriter, _ *http.Request) {
	_, _ = w.Write([]byte(`{"active":true,"issuer":"`))
	block := []byte(strings.Repeat("a", 1<<20))
	for range 1 << 10 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

func TestAProviderThatHangsHoldsNobodyForLong(t *testing.T) {
	p := openid.Start(t, alice)
	release := make(chan struct{})
	defer close(release)
	jwt, opaque := p.Login(t, openid.Mail, alice).Access, p.Login(t, openid.Opaque, alice).Access
	asks, looks := open(t, p, introspects(p, 0)), open(t, p, nil)
	p.Fault(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	done := make(chan error, 22)
	for range 10 {
		go func() { _, err := looks.Verify(t.Context(), identity.NewSecret(jwt)); done <- err }()
		go func() { _, err := asks.Verify(t.Context(), identity.NewSecret(opaque)); done <- err }()
	}
	ctx, cancel := context.WithCancel(t.Context())
	for _, v := range []*Verifier{looks, asks} {
		go func() { _, err := v.Verify(ctx, identity.NewSecret(jwt)); done <- err }()
	}
	cancel()
	for i := range 22 {
		if err := <-done; !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrInvalid) {
			t.Errorf("%v", err)
		} else if i < 2 && !errors.Is(err, context.Canceled) {
			t.Errorf("a client that goes away waits as long as the others: %v", err)
		}
	}
}

func TestAProviderThatIsAwayIsLeftAlone(t *testing.T) {
	p := openid.Start(t, alice)
	v := open(t, p, introspects(p, time.Minute))
	known, other := p.Login(t, openid.Opaque, alice).Access, p.Login(t, openid.Opaque, alice).Access
	accepts(t, v, known)
	p.Fault(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	asked := p.Asked()
	for range 500 {
		refuses(t, v, other, ErrUnavailable)
		accepts(t, v, known)
	}
	// One question more is the gateway's own, and one a second after it.
	if n := p.Asked() - asked; n < breaker.After+1 || n > 50 {
		t.Errorf("asked %d times", n)
	}
}

func TestAYesIsKeptAndANoIsNot(t *testing.T) {
	p := openid.Start(t, alice)
	v := open(t, p, introspects(p, time.Hour))
	token := p.Login(t, openid.Opaque, alice).Access
	first := accepts(t, v, token)
	asked := p.Asked()
	for range 5 {
		if again := accepts(t, v, token); again != first {
			t.Errorf("%v, and then %v", first, again)
		}
	}
	if p.Asked() != asked {
		t.Errorf("asked %d times more", p.Asked()-asked)
	}
	for _, key := range v.asker.good.Keys() {
		kept, _ := v.asker.good.Peek(key)
		if !kept.until.Equal(first.Expires) {
			t.Errorf("kept until %v, beyond the token's %v", kept.until, first.Expires)
		}
		if strings.Contains(fmt.Sprintf("%s%v%+v", key, key, kept), token[:10]) {
			t.Error("the token itself is kept")
		}
		v.asker.good.Add(key, answer{kept.who, time.Now()}) // its time is over
	}
	p.Revoke(t, openid.Opaque, token)
	for range 3 {
		asked = p.Asked()
		refuses(t, v, token, ErrInvalid)
		if p.Asked() != asked+1 {
			t.Error("a no was kept")
		}
	}
}

func TestAnAnswerIsHeldToTheSameRules(t *testing.T) {
	now := time.Now().Unix()
	p := openid.Start(t)
	say := func(text string) {
		p.Fault(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
	}
	v := open(t, p, func(c *Config) {
		introspects(p, time.Hour)(c)
		c.Audience, c.Parties = []string{"imap"}, []string{"phone"}
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
		`{"active":true,` + rest + fmt.Sprintf(`,"exp":%d}`, now-60):                ErrInvalid,
		`{"active":true,` + rest + fmt.Sprintf(`,"nbf":%d}`, now+60):                ErrInvalid,
		`{"active":true,` + strings.Replace(rest, "imap", "web", 1) + `}`:           ErrInvalid,
		`{"active":true,` + strings.Replace(rest, `"aud":"imap",`, "", 1) + `}`:     ErrInvalid,
		`{"active":true,` + strings.Replace(rest, "phone", "tv", 1) + `}`:           ErrInvalid,
		`{"active":true,` + strings.Replace(rest, "a email b", "emails", 1) + `}`:   ErrInvalid,
		`{"active":true,` + rest + `,"cnf":{}}`:                                     ErrInvalid,
		`{"active":true,` + rest + `,"email_verified":false}`:                       ErrInvalid,
		`{"active":true,` + rest:                                                    ErrUnavailable,
		`{"active":true,` + rest + `,"x":"` + strings.Repeat("x", maxAnswer) + `"}`: ErrUnavailable,
	} {
		say(text)
		v.asker.good.Purge()
		if _, err := verify(t, v, "token"); !errors.Is(err, want) {
			t.Errorf("%.200s: %v", text, err)
		}
	}
}

func TestAProviderThatSendsTheQuestionBackIsNotQuoted(t *testing.T) {
	p := openid.Start(t)
	const token = "t0ken-that-must-not-be-seen"
	echo := func(w http.ResponseWriter, r *http.Request) {
		question, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		_, _ = c.Write(append(question, "\r\n\r\n"...)) // whatever becomes of it
	}
	seen, records := observer.New(zap.DebugLevel)
	cfg := Config{}
	introspects(p, 0)(&cfg)
	v, err := New(cfg, zap.New(seen))
	if err != nil {
		t.Fatal(err)
	}
	p.Fault(echo)
	refuses(t, v, token, ErrUnavailable)
	for _, r := range records.All() {
		if text := fmt.Sprint(r.Message, r.ContextMap()); strings.Contains(text, token) {
			t.Errorf("it shows in %s", text)
		}
	}
	if _, err := v.Verify(t.Context(), identity.NewSecret(token)); strings.Contains(err.Error(), token) || records.Len() == 0 {
		t.Errorf("it shows in %v, or nothing was logged", err)
	}
}

func TestAHerdAsksForTheKeysOnce(t *testing.T) {
	p := openid.Start(t, alice)
	v, token := open(t, p, nil), p.Login(t, openid.Mail, alice).Access
	asked, done := p.Asked(), make(chan error, 100)
	for range cap(done) {
		go func() { _, err := v.Verify(t.Context(), identity.NewSecret(token)); done <- err }()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := p.Asked() - asked; n != 2 {
		t.Errorf("asked %d times: for the document and the keys, once each", n)
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
		v, err := New(Config{IntrospectionURL: c.url, Scope: "email", TLS: testbed.Fixed(c.tls)}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(t, v, "token"); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.url, err)
		}
	}
}

func TestAProviderThatDemandsACertificateIsShownOne(t *testing.T) {
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
	for want, files := range map[error]tlsconf.KeyPair{nil: {Cert: cert, Key: key}, ErrUnavailable: {}} {
		c, err := tlsconf.NewClient(tlsconf.ClientConfig{CA: ca.File, Certificate: files}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		v, err := New(Config{IntrospectionURL: server.URL, Scope: "email", TLS: c.Config}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify(t, v, "token"); !errors.Is(err, want) {
			t.Errorf("with %v: %v", files, err)
		}
	}
}

func TestARevokedTokenIsRefusedWhereTheProviderIsAsked(t *testing.T) {
	p := openid.Start(t, alice)
	token := p.Login(t, openid.Mail, alice).Access
	looks, two := open(t, p, nil), open(t, p, func(c *Config) { both(p, c) })
	accepts(t, looks, token)
	accepts(t, two, token)
	p.Revoke(t, openid.Mail, token)
	accepts(t, looks, token) // its signature is as good as before
	refuses(t, two, token, ErrInvalid)
}

func TestWrongCredentialsOfOurOwnAreNotTheUsersFault(t *testing.T) {
	p := openid.Start(t, alice)
	v := open(t, p, func(c *Config) {
		introspects(p, 0)(c)
		c.ClientSecret = identity.NewSecret("wrong")
	})
	refuses(t, v, p.Login(t, openid.Opaque, alice).Access, ErrUnavailable)
}

func TestAnotherIssuersDiscoveryIsNotBelieved(t *testing.T) {
	p, other := openid.Start(t, alice), openid.Start(t, alice)
	p.Fault(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, other.Issuer, other.Issuer+"/keys")
	})
	refuses(t, open(t, p, nil), other.Login(t, openid.Mail, alice).Access, ErrUnavailable)
	p.Fault(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://192.0.2.1/keys"}`, p.Issuer)
	})
	refuses(t, open(t, p, nil), "a.b.c", ErrInvalid) // no token: nobody is asked
	refuses(t, open(t, p, nil), sign(t, p.Key(), good(p), nil), ErrUnavailable)
}

func TestAGatewayStartsWhileItsProviderIsAway(t *testing.T) {
	p := openid.Start(t, alice)
	token := p.Login(t, openid.Mail, alice).Access
	p.Stop()
	v := open(t, p, nil)
	refuses(t, v, token, ErrUnavailable)
	refuses(t, open(t, p, introspects(p, 0)), token, ErrUnavailable)
}

func TestNewRefusesAConfigurationThatLetsAnybodyIn(t *testing.T) {
	const url = "https://id.example.org/x"
	for what, cfg := range map[string]Config{
		"nothing":                        {},
		"an issuer without audience":     {Issuer: url},
		"an introspection of anything":   {IntrospectionURL: url},
		"an issuer in the clear":         {Issuer: "http://id.example.org", Audience: []string{"a"}},
		"an introspection in the clear":  {IntrospectionURL: "http://10.0.0.1/", Scope: "mail"},
		"an issuer that is none":         {Issuer: "id.example.org", Audience: []string{"a"}},
		"another scheme":                 {Issuer: "ftp://id.example.org/", Audience: []string{"a"}},
		"a password in an address":       {IntrospectionURL: "https://a:b@id.example.org/", Scope: "mail"},
		"a negative time":                {IntrospectionURL: url, Scope: "mail", CacheTTL: -1},
		"http that looks like loopback":  {Issuer: "http://127.0.0.1.example.org", Audience: []string{"a"}},
		"http that looks like localhost": {Issuer: "http://localhost.example.org", Audience: []string{"a"}},
	} {
		if _, err := New(cfg, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "oauth: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, cfg := range []Config{
		{Issuer: url, Audience: []string{"a"}}, {IntrospectionURL: url, Scope: "mail"}, {IntrospectionURL: "http://[::1]:8080/", Parties: []string{"p"}},
	} {
		if _, err := New(cfg, zap.NewNop()); err != nil {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
