package openid

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// password is the password of every user, used only inside this package.
const password = "secret"

// users implements storage.UserStore. A user's mail address is both name and id.
type users []string

func (u users) GetUserByUsername(name string) *storage.User { return u.GetUserByID(name) }

func (u users) GetUserByID(id string) *storage.User {
	for _, address := range u {
		if address == id {
			return &storage.User{ID: address, Username: address, Password: password, Email: address, EmailVerified: true}
		}
	}
	return nil
}

// ExampleClientID implements storage.UserStore; its result is not used.
func (u users) ExampleClientID() string { return storage.ServiceUserID }

// store extends the store of the example with key rotation and mail addresses in JWTs.
type store struct {
	*storage.Storage

	// Guarded by mu.
	mu        sync.Mutex
	key       *signingKey
	rotations int // keys made so far

	lifetime atomic.Int64 // of access tokens, a time.Duration; 0: the example's
}

func newStore(t testing.TB, all users) *store {
	s := &store{Storage: storage.NewStorageWithClients(all, map[string]*storage.Client{
		JWTClient:    storage.WebClient(JWTClient, ClientSecret, redirectURL),
		OpaqueClient: storage.WebClient(OpaqueClient, ClientSecret, redirectURL),
	})}
	s.rotateKey(t)
	return s
}

// rotateKey replaces the key.
func (s *store) rotateKey(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rotations++
	k := &signingKey{id: fmt.Sprint("key-", s.rotations), algorithm: jose.RS256}
	var err error
	if s.rotations%2 == 1 {
		k.private, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		k.algorithm = jose.ES256
		k.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatalf("make a key: %v", err)
	}
	s.key = k
}

func (s *store) currentKey() *signingKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.key
}

// SigningKey implements op.Storage.
func (s *store) SigningKey(context.Context) (op.SigningKey, error) { return s.currentKey(), nil }

// SignatureAlgorithms implements op.Storage.
func (s *store) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{s.currentKey().algorithm}, nil
}

// KeySet implements op.Storage.
func (s *store) KeySet(context.Context) ([]op.Key, error) {
	return []op.Key{publicKey{s.currentKey()}}, nil
}

// CreateAccessToken implements op.Storage. The changed lifetime affects JWTs only, which
// contain their own expiry.
func (s *store) CreateAccessToken(ctx context.Context, r op.TokenRequest) (id string, expires time.Time, err error) {
	id, expires, err = s.Storage.CreateAccessToken(ctx, r)
	if d := time.Duration(s.lifetime.Load()); d != 0 {
		expires = time.Now().Add(d)
	}
	return id, expires, err
}

// GetPrivateClaimsFromScopes implements op.Storage: RFC 9068 §2.2.2 allows it.
func (s *store) GetPrivateClaimsFromScopes(_ context.Context, user, _ string, _ []string) (map[string]any, error) {
	return map[string]any{"email": user, "email_verified": true}, nil
}

// GetClientByClientID implements op.Storage.
func (s *store) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := s.Storage.GetClientByClientID(ctx, id)
	if err == nil && id == JWTClient {
		c = jwtClient{c}
	}
	return c, err
}

// jwtClient is a client whose access tokens are JWTs.
type jwtClient struct{ op.Client }

// AccessTokenType implements op.Client.
func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

// IDTokenUserinfoClaimsAssertion implements op.Client.
func (jwtClient) IDTokenUserinfoClaimsAssertion() bool { return true }

// signingKey implements op.SigningKey.
type signingKey struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func (k *signingKey) ID() string                                  { return k.id }
func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k *signingKey) Key() any                                    { return k.private }

// publicKey implements op.Key.
type publicKey struct{ *signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.private.Public() }
