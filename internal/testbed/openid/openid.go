// Package openid runs a real OpenID provider on loopback for tests: that of zitadel/oidc
// with the in-memory store of its example. It issues tokens by the authorization code
// flow, as for a mail program.
//
// It does not depend on the gateway. A Provider belongs to one test.
package openid

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// The two clients and their secret.
const (
	JWTClient    = "mail"   // its access tokens are JWTs
	OpaqueClient = "opaque" // its access tokens are opaque
	ClientSecret = "client secret: with %, + and \u00e9"

	redirectURL = "http://127.0.0.1/done" // has no listener
)

// Provider is a running provider.
type Provider struct {
	// Set once.
	Issuer   string
	server   *httptest.Server
	store    *store
	fault    atomic.Pointer[http.HandlerFunc]
	requests atomic.Int64
}

// Tokens are the result of a user's login at the provider.
type Tokens struct {
	Access string `json:"access_token"`
	ID     string `json:"id_token"`
}

// Start runs a provider until the test ends. A user name is a mail address.
func Start(t testing.TB, users ...string) *Provider {
	t.Helper()
	p := &Provider{}
	p.server = httptest.NewUnstartedServer(nil)
	p.Issuer = "http://" + p.server.Listener.Addr().String()
	p.store = newStore(t, users)
	provider, err := op.NewProvider(&op.Config{CryptoKey: [32]byte{1}, CryptoKeyId: "1", AuthMethodPost: true, CodeMethodS256: true},
		p.store, op.StaticIssuer(p.Issuer), op.WithAllowInsecure(), op.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatalf("make a provider: %v", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", provider)
	callbackURL := op.AuthCallbackURL(provider)
	login := op.NewIssuerInterceptor(provider.IssuerFromRequest).HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.FormValue("authRequestID")
		if err := p.store.CheckUsernamePassword(r.FormValue("user"), password, id); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		http.Redirect(w, r, callbackURL(r.Context(), id), http.StatusFound)
	})
	mux.HandleFunc("/login/username", login)
	p.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.requests.Add(1)
		if fault := p.fault.Load(); fault != nil {
			(*fault)(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
	p.server.Start()
	t.Cleanup(p.Stop)
	return p
}

// Stop ends the provider. Further connections are refused.
func (p *Provider) Stop() {
	p.server.CloseClientConnections()
	p.server.Close()
}

// SetFault makes fault answer all requests instead of the provider; nil removes it.
func (p *Provider) SetFault(fault http.HandlerFunc) {
	if fault == nil {
		p.fault.Store(nil)
		return
	}
	p.fault.Store(&fault)
}

// RequestCount returns the number of requests so far.
func (p *Provider) RequestCount() int { return int(p.requests.Load()) }

// IntrospectionURL returns the address of the introspection endpoint (RFC 7662).
func (p *Provider) IntrospectionURL() string { return p.Issuer + "/oauth/introspect" }

// Login runs the authorization code flow for a user of a client.
func (p *Provider) Login(t testing.TB, client, user string) Tokens {
	t.Helper()
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	next := p.Issuer + "/authorize?" + url.Values{
		"client_id": {client}, "redirect_uri": {redirectURL}, "response_type": {"code"}, "scope": {"openid email profile"}, "state": {"s"},
	}.Encode()
	for range 5 {
		res, err := browser.Get(next)
		if err != nil {
			t.Fatalf("log in at the provider: %v", err)
		}
		_ = res.Body.Close() // only the Location header is used
		location, err := res.Location()
		if err != nil {
			t.Fatalf("log in at the provider: %s: %s", next, res.Status)
		}
		if strings.HasPrefix(location.String(), redirectURL) {
			return p.redeem(t, client, location.Query().Get("code"))
		}
		if next = location.String(); location.Path == "/login/username" {
			next += "&user=" + url.QueryEscape(user)
		}
	}
	t.Fatal("log in at the provider: too many redirects")
	return Tokens{}
}

// redeem exchanges a code for tokens.
func (p *Provider) redeem(t testing.TB, client, code string) (got Tokens) {
	t.Helper()
	p.postForm(t, "/oauth/token", client, url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {redirectURL}}, &got)
	return got
}

// Revoke revokes a client's token (RFC 7009).
func (p *Provider) Revoke(t testing.TB, client, token string) {
	t.Helper()
	p.postForm(t, "/revoke", client, url.Values{"token": {token}}, nil)
}

// postForm sends a form as a client and decodes the JSON of the response into answer,
// unless that is nil.
func (p *Provider) postForm(t testing.TB, path, client string, form url.Values, answer any) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, p.Issuer+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(ClientSecret))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && answer != nil {
		err = json.Unmarshal(body, answer)
	}
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %s, %v", path, res.Status, body, err)
	}
}

// SetLifetime sets the lifetime of future access tokens of JWTClient. With a negative one
// they are expired when issued.
func (p *Provider) SetLifetime(d time.Duration) { p.store.lifetime.Store(int64(d)) }

// RotateKey replaces the provider's only signing key. RSA and elliptic curve keys
// alternate.
func (p *Provider) RotateKey(t testing.TB) {
	t.Helper()
	p.store.rotateKey(t)
}

// SigningKey returns the signing key, for tokens that the provider would not issue.
func (p *Provider) SigningKey() jose.SigningKey {
	k := p.store.currentKey()
	return jose.SigningKey{Algorithm: k.algorithm, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}
}
