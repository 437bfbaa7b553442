package openid

import (
	"strings"
	"testing"
)

func TestProviderIssuesJWTAndOpaqueTokens(t *testing.T) {
	p := Start(t, "alice@example.org")
	if got := p.Login(t, JWTClient, "alice@example.org"); strings.Count(got.Access, ".") != 2 || strings.Count(got.ID, ".") != 2 {
		t.Errorf("for mail: %+v", got)
	}
	if got := p.Login(t, OpaqueClient, "alice@example.org"); strings.Count(got.Access, ".") == 2 || got.Access == "" {
		t.Errorf("opaque: %+v", got)
	}
	p.RotateKey(t)
	if got := p.Login(t, JWTClient, "alice@example.org"); strings.Count(got.Access, ".") != 2 {
		t.Errorf("with another key: %+v", got)
	}
}
