package tests

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
)

const (
	master         = "gateway"
	masterPassword = "the gateway's own"
)

// upstreamVariant is one way to connect to a backend: the TLS mode, the login, and how the
// backend receives the client's address.
type upstreamVariant struct {
	tls     event.TLSMode
	login   string // passthrough, or the style of the master login
	forward string
}

// upstreamVariants returns all variants.
func upstreamVariants() (all []upstreamVariant) {
	for _, mode := range []event.TLSMode{event.ImplicitTLS, event.StartTLS, event.NoTLS} {
		for _, login := range []string{upstream.Passthrough, upstream.AuthzidStyle, upstream.SeparatorStyle} {
			for _, forward := range []string{upstream.ForwardID, upstream.ForwardProxy} {
				all = append(all, upstreamVariant{mode, login, forward})
			}
		}
	}
	return all
}

func (w upstreamVariant) String() string { return fmt.Sprintf("%s-%s-%s", w.tls, w.login, w.forward) }

// backendConf returns the settings of this variant for a backend.
func (w upstreamVariant) backendConf(t testing.TB, backend *testbed.Dovecot) string {
	conf := backendConf(backend, w.tls)
	if w.forward == upstream.ForwardProxy {
		address := backend.Proxied
		if w.tls == event.ImplicitTLS {
			address = backend.ProxiedTLS
		}
		conf = backendConfAt(address, w.tls, backend.CA)
	}
	if w.login != upstream.Passthrough {
		conf += masterLogin(t, master, masterPassword, w.login)
	}
	return conf + ", forward: " + w.forward
}

// masterLogin returns the settings of a login as a master, which begin with a comma.
func masterLogin(t testing.TB, user, password, style string) string {
	return fmt.Sprintf(", login: master, master: {user: %s, password_file: %q, style: %s}", user, writeText(t, "master", password), style)
}

// For every combination of listener, upstream TLS, upstream login, transfer of the client's
// address, and Redis: a client logs in, reads its mail and logs out, and the backend logs
// the client's own address.
func TestEveryCombinationServesAClient(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{
		Password: password, Master: master, MasterPassword: masterPassword,
	})
	backends := map[string]string{}
	for _, w := range upstreamVariants() {
		backends[w.String()] = w.backendConf(t, backend)
	}
	for kind, start := range redisStores {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			g := startGateway(t, backend.CA, backendsConf(backends), s.conf, "auth: {methods: [redis, passthrough]}")
			for i, w := range upstreamVariants() {
				for j, listener := range listeners {
					c := endToEndCase{
						g: g, backend: backend, listener: listener,
						user: fmt.Sprintf("%s%d.%s", kind, i, listener), ip: fmt.Sprintf("127.9.%d.%d", 1+i, 1+j),
					}
					t.Run(fmt.Sprintf("%s-%s", w, listener), func(t *testing.T) {
						t.Parallel()
						if w.login == upstream.Passthrough {
							s.setRoute(t, c.user, w.String())
						} else { // the gateway must verify the password
							s.setRoute(t, c.user, w.String(), "password", "{PLAIN}"+password)
						}
						c.run(t)
					})
				}
			}
		})
	}
}

// endToEndCase is a user and a gateway.
type endToEndCase struct {
	g        *gateway
	backend  *testbed.Dovecot
	listener event.TLSMode
	user, ip string
}

func (c endToEndCase) run(t *testing.T) {
	client := mustDial(t, c.g.endpoint(c.listener), c.ip)
	message := newMessage("what " + c.user + " wrote")
	for _, step := range []struct {
		command string
		want    string
	}{
		{"LOGIN " + c.user + " " + password, " OK [CAPABILITY IMAP4rev1 "},
		{"APPEND INBOX {}", " OK [APPENDUID "},
		{"SELECT INBOX", "* 1 EXISTS"},
		{"FETCH 1 BODY.PEEK[]", fmt.Sprintf("{%d}%q", len(message), message)},
		{"LOGOUT", "* BYE "},
	} {
		var literals [][]byte
		if strings.HasSuffix(step.command, "{}") {
			literals = append(literals, message)
		}
		got, err := client.Do(step.command, literals...)
		if err != nil {
			t.Fatalf("%s: %v", step.command, err)
		}
		if all := formatResponses(got); !strings.Contains(all, step.want) {
			t.Fatalf("%s: got %s; want %q in it", step.command, all, step.want)
		}
	}
	if r, err := client.Read(); err == nil {
		t.Errorf("after LOGOUT: %v", r)
	}
	testkit.Eventually(t, "the backend to have seen "+c.ip, func() bool {
		return strings.Contains(strings.Join(c.backend.Logins(c.user), ""), " rip="+c.ip+",")
	})
}

// mustDial connects from a local address ("": any), reads the greeting and sends STARTTLS
// if the endpoint needs it.
func mustDial(t testing.TB, e endpoint, ip string) *RawClient {
	t.Helper()
	c, err := dialIMAP(e, ip)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// dialIMAP is mustDial for goroutines that must not end the test.
func dialIMAP(e endpoint, ip string) (*RawClient, error) {
	first := e.tls
	if e.starttls {
		first = nil
	}
	c, err := ConnectFrom(ip, e.address, first)
	if err != nil {
		return nil, err
	}
	greeting, err := c.Read()
	if err == nil && !strings.HasPrefix(greeting.Text, "* OK ") {
		err = fmt.Errorf("greeting %q", greeting.Text)
	}
	if err == nil && e.starttls {
		err = c.StartTLS(e.tls)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// formatResponses returns responses as one string.
func formatResponses(all []Response) string {
	var b strings.Builder
	for _, r := range all {
		b.WriteString(r.String() + "\n")
	}
	return b.String()
}
