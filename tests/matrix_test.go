package tests

import (
	"fmt"
	"strings"
	"testing"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
)

const (
	master         = "gateway"
	masterPassword = "the gateway's own"
)

// way is one of the ways to a backend: TLS, login, and how it learns who the
// client is.
type way struct {
	tls     upstream.TLSMode
	login   string // passthrough, or the style of the master login
	forward string
}

// ways are all of them.
func ways() (all []way) {
	for _, mode := range []upstream.TLSMode{upstream.ImplicitTLS, upstream.StartTLS, upstream.NoTLS} {
		for _, login := range []string{upstream.Passthrough, upstream.AuthzidStyle, upstream.SeparatorStyle} {
			for _, forward := range []string{upstream.ForwardID, upstream.ForwardProxy} {
				all = append(all, way{mode, login, forward})
			}
		}
	}
	return all
}

func (w way) String() string { return fmt.Sprintf("%s-%s-%s", w.tls, w.login, w.forward) }

// config is this way to a backend.
func (w way) config(backend *testbed.Dovecot) upstream.Config {
	c := to(backend, w.tls)
	c.Forward = w.forward
	if w.forward == upstream.ForwardProxy {
		c.Address = backend.Proxied
		if w.tls == upstream.ImplicitTLS {
			c.Address = backend.ProxiedTLS
		}
	}
	if w.login != upstream.Passthrough {
		c.Login = upstream.MasterLogin
		c.Master = upstream.Master{
			User: master, Password: identity.NewSecret(masterPassword), Style: w.login, Separator: "*",
		}
	}
	return c
}

// Every kind of listener, TLS to the backend, login there, word of who the
// client is, and Redis: a client logs in, reads its mail, leaves, and the backend
// has seen the client's own address.
func TestEveryCombinationServesAClient(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{
		Password: password, Master: master, MasterPassword: masterPassword,
	})
	backends := map[string]upstream.Config{}
	for _, w := range ways() {
		backends[w.String()] = w.config(backend)
	}
	for kind, start := range stores {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			g := startGateway(t, options{
				ca: backend.CA, backends: backends, redis: &s.config, methods: []string{auth.Redis, auth.Passthrough},
			})
			for i, w := range ways() {
				for j, listener := range listeners {
					c := combination{
						g: g, backend: backend, listener: listener,
						user: fmt.Sprintf("%s%d.%s", kind, i, listener), ip: fmt.Sprintf("127.9.%d.%d", 1+i, 1+j),
					}
					t.Run(fmt.Sprintf("%s-%s", w, listener), func(t *testing.T) {
						t.Parallel()
						if w.login == upstream.Passthrough {
							s.route(t, c.user, w.String())
						} else { // somebody must check the password
							s.route(t, c.user, w.String(), "password", "{PLAIN}"+password)
						}
						c.works(t)
					})
				}
			}
		})
	}
}

// combination is one user's path through one of all gateways.
type combination struct {
	g        *running
	backend  *testbed.Dovecot
	listener proxy.TLSMode
	user, ip string
}

func (c combination) works(t *testing.T) {
	client := enter(t, c.g.at(c.listener), c.ip)
	message := mail("what " + c.user + " wrote")
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
		if all := shown(got); !strings.Contains(all, step.want) {
			t.Fatalf("%s: got %s; want %q in it", step.command, all, step.want)
		}
	}
	if r, err := client.Read(); err == nil {
		t.Errorf("after LOGOUT: %v", r)
	}
	testbed.Within(t, testbed.Patience, "the backend to have seen "+c.ip, func() bool {
		return strings.Contains(strings.Join(c.backend.Logins(c.user), ""), " rip="+c.ip+",")
	})
}

// enter connects from a local address ("": any), reads the greeting and starts
// TLS where it has to be asked for.
func enter(t testing.TB, e endpoint, ip string) *RawClient {
	t.Helper()
	c, err := reach(e, ip)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// reach is enter for those who cannot end the test.
func reach(e endpoint, ip string) (*RawClient, error) {
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

// shown is an answer in one string.
func shown(all []Response) string {
	var b strings.Builder
	for _, r := range all {
		b.WriteString(r.String() + "\n")
	}
	return b.String()
}
