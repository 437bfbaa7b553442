package tests

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// nameSpellings maps account names to the spellings that clients send.
var nameSpellings = map[string][]string{
	"o'brien@example.org":          {"o'brien@example.org", "O'Brien"},
	"user+detail@example.org":      {"user+detail@example.org", "User+Detail"},
	"r&d=x@example.org":            {"R&D=X@example.org"},
	"j\u00f6rg@example.org":        {"j\u00f6rg@example.org", "JO\u0308RG"},
	"\u5c71\u7530@example.org":     {"\u5c71\u7530"},
	"alice@corp.example":           {`DOMAIN\alice`, `domain\Alice@CORP.example`, "alice@corp.example"},
	"a@xn--bcher-kva.example":      {"a@B\u00fccher.example", "a@xn--bcher-kva.example"},
	"\u05d3\u05d5\u05d3@d.example": {"\u05d3\u05d5\u05d3@d.example"},
}

// permissiveSpelling returns rules that allow every optional character.
func permissiveSpelling(t testing.TB) identity.Names {
	t.Helper()
	n, err := identity.NewNames(identity.NameRules{
		Domain: "example.org", Characters: identity.OptionalCharacters, UTF8: true, Prefixes: map[string]string{"DOMAIN": "corp.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// userPassword returns a password that is unique to the user.
func userPassword(user string) string { return fmt.Sprintf("pw-%x", user) }

// loginMethods are the commands that send a name and a password.
var loginMethods = map[string]func(c *RawClient, name, password string) ([]Response, error){
	"LOGIN, quoted": func(c *RawClient, name, password string) ([]Response, error) {
		return c.Do(fmt.Sprintf(`LOGIN "%s" "%s"`, strings.ReplaceAll(name, `\`, `\\`), password))
	},
	"LOGIN, literals": func(c *RawClient, name, password string) ([]Response, error) {
		return c.Do("LOGIN {+} {}", []byte(name), []byte(password))
	},
	"PLAIN": func(c *RawClient, name, password string) ([]Response, error) {
		return c.Do("AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(name+"\x00"+name+"\x00"+password)))
	},
}

func TestUserNamesReachTheirMailboxes(t *testing.T) {
	accounts, file := map[string]string{}, strings.Builder{}
	for user := range nameSpellings {
		accounts[strings.ReplaceAll(user, "'", `\'`)] = userPassword(user) // the form in which Dovecot looks up its passwd-file
		fmt.Fprintf(&file, "%s:{PLAIN}%s\n", user, userPassword(user))
	}
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{
		Users: accounts, Master: "gateway", MasterPassword: "master-password", Settings: "auth_username_chars =\n", Settings24: "auth_username_chars =\n",
	})
	store := testbed.StartRedis(t)
	passwd := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(passwd, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	passes := upstreamConfig(backend, upstream.ImplicitTLS)
	masters, separates := passes, passes
	masters.Login, masters.Master = upstream.MasterLogin, upstream.Master{User: "gateway", Password: identity.NewSecret("master-password")}
	separates.Login, separates.Master = masters.Login, masters.Master
	separates.Master.Style, separates.Master.Separator = upstream.SeparatorStyle, "*"
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			o := gatewayOptions{
				ca: backend.CA, names: permissiveSpelling(t), methods: []string{auth.File}, passwdFile: passwd,
				redis:    &routing.RedisConfig{Addresses: []string{store.Address}},
				backends: map[string]upstream.Config{"passes": passes, "masters": masters, "separates": separates},
				limits:   limit.Config{Connections: limit.Connections{PerUser: 50, PerUserAddress: 50}, Failures: limit.Failures{PerMinute: 10, BanAfter: 10}},
				modes:    map[string]proxy.Mode{},
			}
			for name := range o.backends {
				o.modes[name] = proxy.Mode{Name: mode, Mux: muxSettings()}
			}
			g := startGateway(t, o)
			for _, backendName := range slices.Sorted(maps.Keys(o.backends)) {
				g.setBackend(backendName)
				g.checkAllLogins(backend, string(mode)+"-"+backendName)
			}
			g.checkLimits()
		})
	}
}

// checkAllLogins logs in with each spelling of each name, by one of loginMethods each. Over
// the modes and backends each user uses all methods.
func (g *gateway) checkAllLogins(backend *testbed.Dovecot, box string) {
	g.t.Helper()
	methods := slices.Sorted(maps.Keys(loginMethods))
	offset := len(box) // differs by mode and backend
	for _, user := range slices.Sorted(maps.Keys(nameSpellings)) {
		for i, name := range nameSpellings[user] {
			method := methods[(offset+i)%len(methods)]
			if err := g.checkLogin(backend, loginCase{user, name, fmt.Sprintf("%s-%d", box, i), loginMethods[method]}); err != nil {
				g.t.Errorf("%s: %s of %q: %v", box, method, name, err)
			}
		}
	}
}

// setBackend moves all users.
func (g *gateway) setBackend(backend string) {
	g.t.Helper()
	for user := range nameSpellings {
		err := g.redis.HSet(g.t.Context(), "imapgate:user:"+user, "backend", backend, "user", user, "login", user).Err()
		if err != nil {
			g.t.Fatal(err)
		}
	}
}

// loginCase is a login, and the mailbox that it creates.
type loginCase struct {
	user, name, box string
	login           func(c *RawClient, name, password string) ([]Response, error)
}

// checkLogin logs in and checks that the mailbox it creates is the user's.
func (g *gateway) checkLogin(backend *testbed.Dovecot, e loginCase) error {
	c, err := Connect(g.endpoint(proxy.NoTLS).address, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Read(); err != nil {
		return err
	}
	got, err := e.login(c, e.name, userPassword(e.user))
	if err != nil {
		return err
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " OK ") {
		return fmt.Errorf("login: %s", last)
	}
	if got, err = c.Do("CREATE " + e.box); err != nil {
		return err
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " OK ") {
		return fmt.Errorf("CREATE: %s", last)
	}
	if _, err := os.Stat(filepath.Join(backend.Dir, "mail", e.user, "mail", "mailboxes", e.box)); err != nil {
		return fmt.Errorf("the mailbox is another user's: %w", err)
	}
	_, err = c.Do("LOGOUT")
	return err
}

// checkLimits checks that the limits know each user under its canonical name.
func (g *gateway) checkLimits() {
	g.t.Helper()
	for user := range nameSpellings {
		u, err := permissiveSpelling(g.t).Canonicalize(user)
		if err != nil {
			g.t.Fatal(err)
		}
		about, err := g.limits.InspectUser(g.t.Context(), u)
		if err != nil || len(about.Known) == 0 || !about.Known[0].Net.Contains(netip.MustParseAddr("127.0.0.1")) {
			g.t.Errorf("%s: %+v, %v", user, about, err)
		}
	}
}
