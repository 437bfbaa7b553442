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

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
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
	t.Parallel()
	accounts, file := map[string]string{}, strings.Builder{}
	for user := range nameSpellings {
		accounts[strings.ReplaceAll(user, "'", `\'`)] = userPassword(user) // the form in which Dovecot looks up its passwd-file
		fmt.Fprintf(&file, "%s:{PLAIN}%s\n", user, userPassword(user))
	}
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{
		Users: accounts, Master: "gateway", MasterPassword: "master-password", Settings: "auth_username_chars =\n", Settings24: "auth_username_chars =\n",
	})
	store := testbed.StartRedis(t)
	passes := backendConf(backend, event.ImplicitTLS)
	// The names have every optional character.
	sections := []string{
		fmt.Sprintf(`auth: {methods: [file], file: {path: %q}, default_domain: example.org, names: {characters: %q, utf8: true, prefixes: {DOMAIN: corp.example}}}`,
			writeText(t, "users", file.String()), identity.OptionalCharacters),
		fmt.Sprintf("redis: {addresses: [%q]}", store.Address),
		"limits: {exempt_networks: [], connections: {per_user_address: 50, per_address: 0, new_per_minute: 0}}",
	}
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			backends := map[string]string{
				"passes":    passes + muxMode(mode, ""),
				"masters":   passes + muxMode(mode, "") + masterLogin(t, "gateway", "master-password", upstream.AuthzidStyle),
				"separates": passes + muxMode(mode, "") + masterLogin(t, "gateway", "master-password", upstream.SeparatorStyle),
			}
			g := startGateway(t, backend.CA, append(sections, backendsConf(backends))...)
			for _, backendName := range slices.Sorted(maps.Keys(backends)) {
				setBackend(store, backendName)
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
func setBackend(store *testbed.Redis, backend string) {
	for user := range nameSpellings {
		store.CLI("HSET", "imapgate:user:"+user, "backend", backend, "user", user, "login", user)
	}
}

// loginCase is a login, and the mailbox that it creates.
type loginCase struct {
	user, name, box string
	login           func(c *RawClient, name, password string) ([]Response, error)
}

// checkLogin logs in and checks that the mailbox it creates is the user's.
func (g *gateway) checkLogin(backend *testbed.Dovecot, e loginCase) error {
	c, err := Connect(g.endpoint(event.NoTLS).address, nil)
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
		status := g.limitStatus(user)
		if len(status.KnownNetworks) == 0 || !netip.MustParsePrefix(status.KnownNetworks[0].Network).Contains(netip.MustParseAddr("127.0.0.1")) {
			g.t.Errorf("%s: %+v", user, status)
		}
	}
}
