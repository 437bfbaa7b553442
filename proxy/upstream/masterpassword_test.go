package upstream

import (
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

func TestAReloadedMasterPasswordIsUsedForNewLogins(t *testing.T) {
	password := identity.NewLiveSecret("old")
	for _, style := range []string{AuthzidStyle, SeparatorStyle} {
		password.Replace("old")
		b := New(testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS, Login: MasterLogin, Master: Master{User: "boss", Password: password.Secret(), Style: style}}}), Hooks{}, zap.NewNop())
		first, err := b.cfg().buildCredentials(Request{User: user(t, "joe")})
		if err != nil {
			t.Fatal(err)
		}
		password.Replace("new")
		second, err := b.cfg().buildCredentials(Request{User: user(t, "joe")})
		if err != nil || first.password.Reveal() != "old" || second.password.Reveal() != "new" {
			t.Errorf("%s: %q, then %q; %v", style, first.password.Reveal(), second.password.Reveal(), err)
		}
	}
}
