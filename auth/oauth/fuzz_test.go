package oauth

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"imapgate/internal/identity"
	"imapgate/internal/testbed/openid"
)

// FuzzOAuthToken lets an attacker who can have anything signed change the header, the claims
// and the bytes of a token. Every accepted token must pass a check that shares no code with the
// Verifier.
func FuzzOAuthToken(f *testing.F) {
	p := openid.Start(f)
	v, key := newVerifier(f, p, func(c *Config) { c.AuthorizedParty = []string{"phone"} }), p.SigningKey()
	private := key.Key.(jose.JSONWebKey).Key.(*rsa.PrivateKey)
	now := time.Now().Unix()
	head := `{"alg":"RS256","kid":"key-1","typ":"JWT"}`
	body, err := json.Marshal(withClaim(validClaims(p), "azp", "phone"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head, string(body), int64(0), uint16(0), byte(0))
	f.Add(strings.Replace(head, "RS256", "none", 1), string(body), int64(0), uint16(0), byte(0))
	f.Add(strings.Replace(head, "RS256", "HS256", 1), string(body), int64(1), uint16(3), byte(1))
	f.Add(strings.Replace(head, `"JWT"`, `"logout+jwt"`, 1), string(body), int64(-60), uint16(0), byte(0))
	f.Add(head, `{"iss":"ISS","aud":"mail","client_id":"phone","email":"a","exp":NOW,"nbf":NOW}`, int64(40), uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, head, body string, ahead int64, at uint16, flip byte) {
		at64, _ := json.Marshal(now + ahead%(1<<32))
		body = strings.NewReplacer("ISS", p.Issuer, "NOW", string(at64)).Replace(body)
		encode := base64.RawURLEncoding.EncodeToString
		signed := encode([]byte(head)) + "." + encode([]byte(body))
		sum := sha256.Sum256([]byte(signed))
		signature, err := rsa.SignPKCS1v15(nil, private, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		raw := []byte(signed + "." + encode(signature))
		raw[int(at)%len(raw)] ^= flip
		subject, err := v.Verify(t.Context(), identity.NewSecret(string(raw)))
		if errors.Is(err, ErrUnavailable) {
			t.Fatalf("the provider is up: %v", err)
		}
		if err == nil && !isAcceptable(&private.PublicKey, string(raw), subject, p.Issuer) {
			t.Fatalf("accepted as %+v: %s %s", subject, head, body)
		}
	})
}

// isAcceptable reports whether a token may be accepted, by RFC 7515, RFC 7519 and the
// configuration of FuzzOAuthToken alone.
func isAcceptable(public *rsa.PublicKey, token string, subject Subject, issuer string) bool {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return false
	}
	var raw [3][]byte
	for i, part := range parts {
		var err error
		if raw[i], err = base64.RawURLEncoding.DecodeString(part); err != nil {
			return false
		}
	}
	sum := sha256.Sum256([]byte(base64.RawURLEncoding.EncodeToString(raw[0]) + "." + base64.RawURLEncoding.EncodeToString(raw[1])))
	var head, body map[string]any
	if rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], raw[2]) != nil || json.Unmarshal(raw[0], &head) != nil || json.Unmarshal(raw[1], &body) != nil {
		return false
	}
	audience, _ := body["aud"].([]any)
	if one, ok := body["aud"].(string); ok {
		audience = []any{one}
	}
	party := body["azp"]
	if party == nil || party == "" {
		party = body["client_id"]
	}
	exp, _ := body["exp"].(float64)
	nbf, _ := body["nbf"].(float64)
	_, bound := maps.Clone(body)["cnf"]
	now := float64(time.Now().Unix())
	return head["alg"] == "RS256" && (head["kid"] == "key-1" || head["kid"] == nil || head["kid"] == "") &&
		body["iss"] == issuer && slices.Contains(audience, any("mail")) && party == "phone" &&
		exp > now-31 && nbf < now+32 && (!bound || body["cnf"] == nil) &&
		subject.Name != "" && body["email"] == subject.Name && subject.Expires.Unix() == int64(exp)
}
