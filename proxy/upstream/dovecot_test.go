//go:build unix

package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// loginVariant is one combination of connection and login at a real backend.
type loginVariant struct {
	mode           event.TLSMode
	login, forward string
	style          string
}

func loginVariants() (all []loginVariant) {
	for _, mode := range []event.TLSMode{event.NoTLS, event.StartTLS, event.ImplicitTLS} {
		for _, forward := range []string{ForwardID, ForwardProxy} {
			all = append(all, loginVariant{mode, Passthrough, forward, ""},
				loginVariant{mode, MasterLogin, forward, AuthzidStyle}, loginVariant{mode, MasterLogin, forward, SeparatorStyle})
		}
	}
	return all
}

func (w loginVariant) backend(d *testbed.Dovecot) *Backend {
	cfg := Config{Name: "east", Settings: Settings{TLS: w.mode, Login: w.login, Forward: w.forward, Master: Master{User: "gateway", Password: identity.NewSecret("m-pw"), Style: w.style, Separator: "*"}}}
	switch {
	case w.mode == event.ImplicitTLS && w.forward == ForwardProxy:
		cfg.Address = d.ProxiedTLS
	case w.mode == event.ImplicitTLS:
		cfg.Address = d.TLS
	case w.forward == ForwardProxy:
		cfg.Address = d.Proxied
	default:
		cfg.Address = d.Plain
	}
	if w.mode != event.NoTLS {
		cfg.TLSConfig = d.CA.ClientTLSFunc(testbed.DovecotName)
	}
	return New(testbed.WithDefaults(cfg), Hooks{}, zap.NewNop())
}

func TestDovecotAcceptsEveryLoginVariantAndLogsTheClientAddress(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: "pw", Master: "gateway", MasterPassword: "m-pw"})
	for i, w := range loginVariants() {
		req := Request{
			User:     user(t, fmt.Sprintf("user%d", i)),
			Password: identity.NewSecret("pw"),
			Client: Client{
				Addr:    netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 4711),
				Local:   netip.MustParseAddrPort("198.51.100.1:993"),
				Session: fmt.Sprintf("session-%d", i),
				ID:      [][2]string{{"name", "test"}},
			},
		}
		if w.login == MasterLogin {
			req.Password = identity.Secret{}
		}
		conn, err := w.backend(d).Login(context.Background(), req)
		if err != nil {
			t.Errorf("%v: %v", w, err)
			continue
		}
		checkSession(t, conn, w)
		address, session := "rip="+req.Client.Addr.Addr().String()+",", "session=<"+req.Client.Session+">"
		testkit.Eventually(t, "Dovecot to log "+address, func() bool {
			for _, line := range d.Logins(req.User.String()) {
				if strings.Contains(line, address) &&
					(w.forward == ForwardProxy || strings.Contains(line, session)) {
					return true
				}
			}
			return false
		})
	}
}

// checkSession uses a new connection as a session does.
func checkSession(t *testing.T, conn *Conn, w loginVariant) {
	t.Helper()
	if !conn.Caps().Has("IDLE") || !conn.Caps().Has("NAMESPACE") {
		t.Errorf("%v: capabilities %q are not those after a login", w, conn.Caps())
	}
	nc, rest, _ := conn.Detach()
	defer func() { _ = nc.Close() }()
	if _, secure := nc.(*tls.Conn); secure == (w.mode == event.NoTLS) {
		t.Errorf("%v: a %T", w, nc)
	}
	if len(rest) > 0 {
		t.Errorf("%v: rest %q", w, rest)
	}
	if _, err := io.WriteString(nc, "a STATUS INBOX (MESSAGES)\r\nb LOGOUT\r\n"); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(bufio.NewReader(nc))
	if err != nil || !strings.Contains(string(all), "* STATUS INBOX (MESSAGES 0)") || !strings.Contains(string(all), "b OK") {
		t.Errorf("%v: %q %v", w, all, err)
	}
}

func TestDovecotRefusalsAreReported(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Users: map[string]string{"joe": "right"}, Master: "gateway", MasterPassword: "other"})
	var wg sync.WaitGroup
	for _, w := range loginVariants() {
		wg.Go(func() { checkRefusal(t, d, w) }) // Dovecot delays each
	}
	wg.Wait()
	b := loginVariant{mode: event.ImplicitTLS}.backend(d)
	cfg := *b.cfg()
	cfg.TLSConfig = d.CA.ClientTLSFunc("another.test")
	b.Apply(cfg)
	if _, err := b.Login(context.Background(), Request{User: user(t, "joe"), Password: identity.NewSecret("right")}); !errors.Is(err, errTLS) {
		t.Errorf("%v", err)
	}
}

func checkRefusal(t *testing.T, d *testbed.Dovecot, w loginVariant) {
	_, err := w.backend(d).Login(context.Background(), Request{User: user(t, "joe"), Password: identity.NewSecret("wrong")})
	if w.login == Passthrough && !errors.Is(err, ErrDenied) {
		t.Errorf("%v: %v", w, err)
	}
	if w.login == MasterLogin && (!errors.Is(err, ErrUnavailable) || !errors.Is(err, errMasterDenied)) {
		t.Errorf("%v: %v", w, err)
	}
	if err != nil && (strings.Contains(err.Error(), "wrong") || strings.Contains(err.Error(), "m-pw")) {
		t.Errorf("%v: a password is in %q", w, err)
	}
}

func TestConcurrentLoginsDoNotMixUsers(t *testing.T) {
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: "pw"})
	b := loginVariant{mode: event.ImplicitTLS, forward: ForwardID}.backend(d)
	var wg sync.WaitGroup
	for i := range 20 {
		name := fmt.Sprintf("user%d", i)
		wg.Go(func() {
			conn, err := b.Login(context.Background(), Request{User: user(t, name), Password: identity.NewSecret("pw")})
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			if conn.User().String() != name {
				t.Errorf("%s got the connection of %s", name, conn.User())
			}
		})
	}
	wg.Wait()
}

// Dovecot compares passwords as octets.
func TestDovecotVerifiesAPasswordInLatin1(t *testing.T) {
	const latin1 = "p\xe4ssw\xf6rd"
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Users: map[string]string{"alice@example.org": latin1}})
	b := New(testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: d.TLS}, TLSConfig: d.CA.ClientTLSFunc(testbed.DovecotName)}), Hooks{}, zap.NewNop())
	for password, want := range map[string]error{latin1: nil, "p\u00e4ssw\u00f6rd": ErrDenied, latin1 + "\xff": ErrDenied} {
		conn, err := b.Login(t.Context(), Request{User: user(t, "alice@example.org"), Password: identity.NewSecret(password)})
		if !errors.Is(err, want) {
			t.Errorf("%q: %v", password, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}
