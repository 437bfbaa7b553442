package openid

import (
	"strings"
	"testing"
)

func TestTheProviderGivesTokensOfBothKinds(t *testing.T) {
	p := Start(t, "alice@example.org")
	if got := p.Login(t, Mail, "alice@example.org"); strings.Count(got.Access, ".") != 2 || strings.Count(got.ID, ".") != 2 {
		t.Errorf("for mail: %+v", got)
	}
	if got := p.Login(t, Opaque, "alice@example.org"); strings.Count(got.Access, ".") == 2 || got.Access == "" {
		t.Errorf("opaque: %+v", got)
	}
	p.Rotate(t)
	if got := p.Login(t, Mail, "alice@example.org"); strings.Count(got.Access, ".") != 2 {
		t.Errorf("with another key: %+v", got)
	}
}
