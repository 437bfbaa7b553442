package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/audit"
	"imapgate/proxy"
	"imapgate/routing"
)

// minimal is the smallest valid configuration.
const minimal = `
tls: {certificates: [{cert: /c.pem, key: /k.pem}]}
routing: {source: static, static: {default: east}}
backends: {east: {address: "mail-east.internal:993"}}
`

func noEnv(string) (string, bool) { return "", false }

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := parse("test.yaml", []byte(text), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// writeSecretFile writes a file that only its owner can read.
func writeSecretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeysLeftOutHaveTheirDefaults(t *testing.T) {
	c := mustParse(t, minimal)
	want := []Listener{{ListenerSettings: proxy.ListenerSettings{Address: "0.0.0.0:993", Name: "0.0.0.0:993", TLS: "implicit"}}}
	if !reflect.DeepEqual(c.Listeners, want) {
		t.Errorf("listeners: %+v", c.Listeners)
	}
	if c.Redis != nil || !slices.Equal(c.Auth.Methods, []string{"passthrough"}) || c.TLS.MinVersion != "1.2" {
		t.Errorf("%+v", c)
	}
	b := c.Backends["east"]
	if b.Name != "east" || b.TLS != "implicit" || b.Login != "passthrough" || b.Forward != "id" || b.Mode != "splice" || b.Master.Separator != "*" {
		t.Errorf("backend: %+v", b)
	}
	l := c.Limits
	if l.PreauthTimeout != time.Minute || l.IdleTimeout != 32*time.Minute || l.MaxUpstreamLogins != 64 || l.ProxyTTL != 5 {
		t.Errorf("limits: %+v", l)
	}
	if c.Routing.Cache != (routing.CacheSettings{TTL: time.Minute, Stale: 24 * time.Hour, Negative: 5 * time.Second}) {
		t.Errorf("cache: %+v", c.Routing.Cache)
	}
	if !reflect.DeepEqual(c.Audit, audit.Settings{Path: "-", OnFailure: "block", Commands: "none", FirstPerMinute: 10}) || c.Log != (Log{Level: "info", Format: "json"}) || c.Admin.Address != "127.0.0.1:9143" {
		t.Errorf("%+v %+v %+v", c.Audit, c.Log, c.Admin)
	}
}

// contractConfig returns an example of the whole file.
func contractConfig(redisPassword, master string) string {
	return `
listeners:
  - address: 0.0.0.0:993
    tls: implicit                 # implicit | starttls | none
  - address: 0.0.0.0:143
    tls: starttls                 # LOGINDISABLED until TLS
  - address: 10.0.0.5:1993
    tls: implicit
    name: edge
    trusted_networks: [10.1.0.0/16, 192.0.2.7]
    proxy_protocol:
      trusted: [10.0.0.0/8, 2001:db8::/32]
tls:
  min_version: "1.2"
  certificates:
    - cert: /etc/imapgate/tls/mail.pem
      key: /etc/imapgate/tls/mail.key
  client_ca: ""
redis:
  addresses: [127.0.0.1:6379]
  cluster: false
  sentinel_master: ""
  username: ""
  password_file: ` + redisPassword + `
  tls: false
  ca: ""
  prefix: "imapgate:"
auth:
  methods: [file, redis, passthrough]
  default_domain: ""
  file: {path: /etc/imapgate/users}
routing:
  source: redis
  cache: {ttl: 60s, stale: 24h, negative: 5s}
backends:
  east:
    address: mail-east.internal:993
    tls: implicit
    ca: ""
    server_name: ""
    login: master
    master: {user: gateway, password_file: ` + master + `, style: authzid, separator: "*"}
    forward: id
    mode: splice
limits: {}
audit: {path: "-"}
log: {level: info, format: json}
admin: {address: 127.0.0.1:9143, token_file: ""}
`
}

func TestContractConfigIsRead(t *testing.T) {
	c := mustParse(t, contractConfig(writeSecretFile(t, "redis-pw\n"), writeSecretFile(t, "master-pw\r\n")))
	if got := c.Redis.Password.Reveal(); got != "redis-pw" {
		t.Errorf("Redis password %q", got)
	}
	if got := c.Backends["east"].Master.Password.Reveal(); got != "master-pw" {
		t.Errorf("master password %q", got)
	}
	edge := c.Listeners[2]
	wantTrusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	wantNetworks := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.7/32")}
	if edge.Name != "edge" || !slices.Equal(edge.ProxyProtocol.Trusted, wantTrusted) || !slices.Equal(edge.TrustedNetworks, wantNetworks) {
		t.Errorf("%+v", edge)
	}
	if s := c.TLS; len(s.Certificates) != 1 || s.Certificates[0].Key != "/etc/imapgate/tls/mail.key" {
		t.Errorf("%+v", s)
	}
	if printed := fmt.Sprintf("%+v %+v", c.Redis, c.Backends); strings.Contains(printed, "-pw") {
		t.Errorf("a printed configuration shows a password: %s", printed)
	}
}

func TestSecretsComeFromTheEnvironmentToo(t *testing.T) {
	env := map[string]string{"IMAPGATE_REDIS_PASSWORD": "r", "IMAPGATE_MASTER_PASSWORD_EAST_1": "m", "IMAPGATE_ADMIN_TOKEN": "0123456789abcdef"}
	c, err := parse("x", []byte(`
tls: {certificates: [{cert: /c.pem, key: /k.pem}]}
redis: {}
auth: {methods: [redis]}
admin: {address: "0.0.0.0:9143", tls: {cert: /c.pem, key: /k.pem}}
backends: {east-1: {address: "a:993", login: master, master: {user: gw}}}
`), func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	if c.Redis.Password.Reveal() != "r" || c.Backends["east-1"].Master.Password.Reveal() != "m" || c.Admin.Token.Reveal() != "0123456789abcdef" {
		t.Error("a secret of the environment is missing")
	}
}

func TestAllProblemsAreReportedAtOnceInTheFilesOrder(t *testing.T) {
	_, err := parse("/etc/imapgate.yaml", []byte(`listeners:
  - address: 0.0.0.0:993
  - address: 0.0.0.0:993
    tls: tlss
tls:
  min_version: 1.2
  certs: []
backends:
  east:
    address: mail-east
    mode: park
limits: {preauth_timeout: 10, max_bad_commands: 0}
`), noEnv)
	want := `/etc/imapgate.yaml:3:14: listeners[1].address: "0.0.0.0:993" cannot be listened on together with "0.0.0.0:993" of listeners[0]
/etc/imapgate.yaml:4:10: listeners[1].tls: "tlss" is not one of implicit, starttls, none
/etc/imapgate.yaml:5:1: tls.certificates: a listener has TLS, so at least one certificate is needed, here or in certificate_dir
/etc/imapgate.yaml:6:16: tls.min_version: expected a string; put it in "quotes", got a number
/etc/imapgate.yaml:7:3: tls.certs: unknown key; the keys here are min_version, certificates, certificate_dir, client_ca
/etc/imapgate.yaml:10:14: backends.east.address: "mail-east" is not host:port such as mail.example.org:993
/etc/imapgate.yaml:11:11: backends.east.mode: park is not available in this version; it has splice, reuse, resume
/etc/imapgate.yaml:12:27: limits.preauth_timeout: expected a duration such as 30s, 5m, 24h or 7d, got a number
/etc/imapgate.yaml:12:49: limits.max_bad_commands: "0" is less than 1`
	var invalid *InvalidError
	if !errors.As(err, &invalid) {
		t.Fatal(err)
	}
	got := strings.Split(err.Error(), "\n")
	wanted := strings.Split(want, "\n")
	// Redis is the default source, but the file has no redis block.
	wanted = slices.Insert(wanted, 0, "/etc/imapgate.yaml:1:1: routing.source: is redis, but there is no redis block")
	for i := range max(len(got), len(wanted)) {
		g, w := "", ""
		if i < len(got) {
			g = got[i]
		}
		if i < len(wanted) {
			w = wanted[i]
		}
		if g != w {
			t.Errorf("line %d:\n got %s\nwant %s", i, g, w)
		}
	}
}

func TestEachProblemHasItsPosition(t *testing.T) {
	password := writeSecretFile(t, "pw")
	open := writeSecretFile(t, "pw")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		// The syntax of the file.
		"a: [":                              "1:4: invalid YAML",
		"a: b: c":                           "invalid YAML",
		"redis: {addresses: [a:1}\nlog: {}": "1:24: invalid YAML: a bracket, a comma or the indentation is wrong, here or before",
		"default_domain: a":                 "1:1: default_domain: unknown key; it belongs in auth",
		"- a":                               "1:1: expected a mapping, got a list",
		"just text":                         "1:1: expected a mapping, got a string",
		"nonsense: 1":                       "1:1: nonsense: unknown key; the keys here are gateway, listeners, tls,",
		"listener: []":                      "1:1: listener: unknown key; did you mean listeners?",
		"tls: &a {}":                        "tls: expected a mapping, got an anchor",
		"log: {<<: {}}":                     "a key must be a plain word",
		"log: {level: !!str x}":             "log.level: expected a string, got an anchor, an alias or a tag",
		"log: {}\nlog: {}":                  "2:1: log: duplicate key",
		"log: {}\n---\nlog: {}":             "is a second document",
		"log:":                              "log: expected a mapping, got nothing",
		"log: text":                         "log: expected a mapping, got a string",
		"log: {level: [x]}":                 "1:14: log.level: expected a string, got a list",
		"log: {level: {a: b}}":              "log.level: expected a string, got a mapping",
		"a: [" + strings.Repeat("[\n", 300): "nested more than 200 deep",
		strings.Repeat("- ", 300):           "nested more than 200 deep",
		"# " + strings.Repeat("-", 300) + "\nnonsense: 1": "nonsense: unknown key",
		strings.Repeat("[", 300):                          "nested more than 200 deep",
		"log: {level: \"a\\x00\"}":                        `log.level: "a\x00" is not one of debug, info, warn, error`,
		// Listeners.
		"listeners: []":                                                       "1:1: listeners: is empty",
		"listeners: {}":                                                       "listeners: expected a list, got a mapping",
		"listeners: [{address: nowhere}]":                                     `1:23: listeners[0].address: "nowhere" is not host:port`,
		"listeners: [{address: \":70000\"}]":                                  "the port is not a number from 0 to 65535",
		"listeners: [{address: \":imaps\"}]":                                  "the port is not a number",
		"listeners: [{address: \"a b:1\"}]":                                   "the host is neither a name nor an IP address",
		"listeners: [{proxy_protocol: {}}]":                                   "listeners[0].proxy_protocol.trusted: is required",
		"listeners: [{proxy_protocol: {trusted: []}}]":                        "listeners[0].proxy_protocol.trusted: is required",
		"listeners: [{proxy_protocol: {trusted: [10.0.0.1/8]}}]":              "has bits beyond its length; the network is 10.0.0.0/8",
		"listeners: [{proxy_protocol: {trusted: [all]}}]":                     `listeners[0].proxy_protocol.trusted[0]: "all" is not a network`,
		"listeners: [{trusted_networks: [\"::ffff:10.0.0.0/104\"]}]":          "write it as an IPv4 network",
		"listeners: [{address: \"[::]:993\"}, {address: \"127.0.0.1:993\"}]":  "listeners[1].address: \"127.0.0.1:993\" cannot be listened on together",
		"listeners: [{address: \":1\", name: x}, {address: \":2\", name: x}]": `listeners[1].name: "x" is already the name of listeners[0]`,
		"listeners: [{address: \":9143\"}]":                                   "admin.address: \"127.0.0.1:9143\" cannot be listened on together",
		"listeners: [{name: \"a b\"}]":                                        "characters other than visible ASCII",
		// TLS.
		"tls: {min_version: \"1.1\"}":                                     `tls.min_version: "1.1" is not one of 1.2, 1.3`,
		"tls: {certificates: [{cert: /c}]}":                               "tls.certificates[0].key: is required",
		"tls: {certificates: [{cert: \"\", key: /k}]}":                    "tls.certificates[0].cert: is empty",
		"auth: {external: {san: email}}":                                  "auth.external.san: needs tls.client_ca: without it no client certificate is requested",
		"auth: {external: {san: cn}}":                                     `auth.external.san: "cn" is not one of email, dns, uri`,
		"auth: {mechanisms: [PLAIN, CRAM-MD5]}":                           `auth.mechanisms[1]: "CRAM-MD5" is not one of SCRAM-SHA-256-PLUS, SCRAM-SHA-256, EXTERNAL, PLAIN, LOGIN, OAUTHBEARER, XOAUTH2`,
		"auth: {mechanisms: [PLAIN, PLAIN]}":                              "auth.mechanisms[1]: duplicate value PLAIN",
		"auth: {mechanisms: [PLAIN, SCRAM-SHA-256]}":                      "auth.scram_secret_file: SCRAM needs scram_secret_file or IMAPGATE_SCRAM_SECRET",
		"auth: {mechanisms: [PLAIN]}\nlisteners: [{mechanisms: [LOGIN]}]": "listeners[0].mechanisms[0]: LOGIN is not among auth.mechanisms",
		// Redis.
		"redis: {addresses: []}":                                                        "redis.addresses: is empty",
		"redis: {addresses: [a:1, b:2]}":                                                "several addresses need cluster: true or sentinel_master",
		"redis: {cluster: true, sentinel_master: m}":                                    "redis.sentinel_master: is for servers with sentinels",
		"redis: {cluster: \"yes\"}":                                                     "redis.cluster: expected true or false, got a string",
		"redis: {addresses: [\"127.1:6379\"]}":                                          "redis.addresses[0]: \"127.1:6379\": the host is neither",
		"redis: {ca: /ca}":                                                              "redis.ca: is used only with tls: true",
		"redis: {server_name: r}":                                                       "redis.server_name: is used only with tls: true",
		"redis: {client_certificate: {cert: /c, key: /k}}":                              "redis.client_certificate: is used only with tls: true",
		"redis: {tls: true, client_certificate: {cert: /c}}":                            "redis.client_certificate.key: is required",
		"tls: {certificate_dir: live}":                                                  "tls.certificate_dir: \"live\" is not an absolute path",
		"auth: {oauth: {client_certificate: {key: /k}}}":                                "auth.oauth.client_certificate.cert: is required",
		"redis: {prefix: \"a{b}\"}":                                                     "redis.prefix: \"a{b}\" is not 1 to 64",
		"redis: {prefix: \"\"}":                                                         "redis.prefix: \"\" is not 1 to 64",
		"redis: {password_file: /nonexistent}":                                          "redis.password_file: no such file or directory",
		"redis: {password_file: " + open + "}":                                          "redis.password_file: the file is accessible to other users; run: chmod o= \"" + open + "\"",
		"redis: {password_file: /dev/zero}":                                             "redis.password_file: is not a regular file",
		"redis: {password_file: " + writeSecretFile(t, "\n") + "}":                      "redis.password_file: the secret is empty",
		"redis: {password_file: " + writeSecretFile(t, "a\nb\n") + "}":                  "redis.password_file: the secret has more than one line",
		"redis: {password_file: " + writeSecretFile(t, strings.Repeat("x", 5000)) + "}": "redis.password_file: the file is too long",
		// Auth.
		"auth: {methods: []}":                               "auth.methods: is empty",
		"auth: {methods: [file, oauth]}":                    "auth.methods[1]: is oauth, but there is neither auth.oauth.issuer nor auth.oauth.introspection_url",
		"auth: {methods: [ldap]}":                           `auth.methods[0]: "ldap" is not one of`,
		"auth: {methods: [file, file]}":                     "auth.methods[1]: duplicate value file",
		"auth: {methods: [redis]}":                          "auth.methods[0]: is redis, but there is no redis block",
		"auth: {default_domain: \"a b\"}":                   `auth.default_domain: "a b" is not a domain`,
		"auth: {names: {characters: \"+*\"}}":               "auth.names.characters: only +'&= can be allowed",
		"auth: {names: {characters: \"+\", detail: strip}}": "auth.names.characters: + begins a detail",
		"auth: {names: {detail: drop}}":                     "auth.names.detail",
		"auth: {names: {prefixes: {\"A B\": x}}}":           `auth.names.prefixes: "A B" has other characters`,
		"auth: {names: {prefixes: {A: x, a: y}}}":           "is there twice",
		"auth: {names: {prefixes: {A: \"x@y\"}}}":           "does not map to a valid domain",
		"auth: {names: {characters: \"+\"}}\nbackends: {east: {address: \"a:1\", master: {separator: \"+\"}}}": `backends.east.master.separator: "+" may be part of a user name`,
		"auth: {methods: [file], file: {path: \"\"}}":                                                          "auth.file.path: is empty",
		// Routing.
		"routing: {source: http}":   "routing.source: is http, but http is not among auth.methods: only the auth server's answer to a login names the backend",
		"routing: {source: static}": "routing.static: source: static needs users, domains or default",
		"routing: {source: static, static: {default: west}}\nbackends: {east: {}}":      `routing.static.default: there is no backend "west"`,
		"routing: {source: static, static: {users: {a@b: west}}}\nbackends: {east: {}}": `routing.static.users["a@b"]: there is no backend "west"`,
		"routing: {source: static, static: {users: {\"a b\": east}}}":                   `routing.static.users["a b"]: is not a valid name`,
		"routing: {source: static, static: {users: {a: east, A: east}}}":                `routing.static.users.a: is another spelling of "A"`,
		"routing: {source: static, static: {domains: {\"-@-\": east}}}":                 "is not a valid name",
		"routing: {cache: {ttl: 0s}}":                                                   `routing.cache.ttl: "0s" is less than 1s`,
		"routing: {cache: {ttl: 60}}":                                                   "routing.cache.ttl: expected a duration such as 30s, 5m, 24h or 7d, got a number",
		"routing: {cache: {ttl: sixty}}":                                                `routing.cache.ttl: "sixty" is not a duration`,
		"routing: {snapshot: routes}":                                                   "routing.snapshot: \"routes\" is not an absolute path",
		// Backends.
		"backends: {}":                                                                                            "backends: at least one is needed",
		"backends: {East: {address: \"a:1\"}}":                                                                    `backends["East"]: is not a name of 1 to 63`,
		"backends: {-e: {address: \"a:1\"}}":                                                                      "backends.-e: is not a name",
		"backends: {east: {}}":                                                                                    "backends.east.address: is required",
		"backends: {east: {address: \":993\"}}":                                                                   "has no host",
		"backends: {east: {address: \"a:0\"}}":                                                                    "the port is not a number from 1 to 65535",
		"backends: {east: {address: \"unix:/x\"}}":                                                                "the port is not a number",
		"backends: {east: {address: \"127.0.0.1:993\"}}":                                                          `backends.east.address: "127.0.0.1:993" is listeners[0], this gateway itself`,
		"backends: {east: {address: \"localhost:993\"}}":                                                          "this gateway itself",
		"backends: {east: {address: \"[::1]:993\"}}\nlisteners: [{address: \"[::]:993\"}]":                        "this gateway itself",
		"backends: {east: {address: \"a:1\", tls: none, ca: /ca}}":                                                "backends.east: ca, server_name and client_certificate are used only with TLS",
		"backends: {east: {address: \"a:1\", client_certificate: {cert: /c}}}":                                    "backends.east.client_certificate.key: is required",
		"backends: {east: {address: \"a:1\", mode: reuses}}":                                                      `backends.east.mode: "reuses" is not one of splice, reuse, resume`,
		"backends: {east: {mux: {command_hold_timeout: 0s}}}":                                                     `backends.east.mux.command_hold_timeout: "0s" is less than 100ms`,
		"backends: {east: {mux: {max_concurrent_reattaches: 0}}}":                                                 `backends.east.mux.max_concurrent_reattaches: "0" is less than 1`,
		"backends: {east: {mux: {uid_prefetch: never}}}":                                                          `backends.east.mux.uid_prefetch: "never" is not one of auto, eager, lazy`,
		"backends: {east: {mux: {park_delay: 30s}}}":                                                              "backends.east.mux.park_delay: unknown key",
		"backends: {east: {mux: {hide_capabilities: [SORT, imap4rev1]}}}":                                         "backends.east.mux.hide_capabilities[1]: imap4rev1 cannot be hidden",
		"backends: {east: {mux: {hide_capabilities: [\"A B\"]}}}":                                                 `hide_capabilities[0]: "A B" is not the name of a capability`,
		"backends: {east: {mux: {hide_capabilities: SORT}}}":                                                      "backends.east.mux.hide_capabilities: expected a list, got a string",
		"backends: {east: {address: \"a:1\", forward: xclient}}":                                                  `"xclient" is not one of id, proxy, none`,
		"backends: {east: {address: \"a:1\", login: master}}":                                                     "backends.east.master.password_file: login: master needs password_file or IMAPGATE_MASTER_PASSWORD_EAST",
		"backends: {east: {address: \"a:1\", login: master, master: {}}}":                                         "backends.east.master.user: is required",
		"backends: {east: {address: \"a:1\", login: master, master: {user: m, password_file: " + password + "}}}": "backends.east.login: master needs an auth method that verifies passwords here",
		"backends: {east: {address: \"a:1\", master: {separator: \".\"}}}":                                        `backends.east.master.separator: "." may be part of a user name`,
		"backends: {east: {address: \"a:1\", master: {separator: \"@\"}}}":                                        `"@" may be part of a user name`,
		"backends: {east: {address: \"a:1\", master: {separator: \"**\"}}}":                                       "is not one visible ASCII character",
		// The rest.
		"limits: {idle_timeout: 10m}":                     `limits.idle_timeout: "10m" is less than 30m`,
		"limits: {max_connections: many}":                 "limits.max_connections: expected a whole number, got a string",
		"limits: {max_connections: 1.5}":                  "limits.max_connections: expected a whole number, got a number",
		"limits: {max_connections: 99999999999999999999}": "limits.max_connections: ",
		"limits: {preauth_timeout: 5s}":                   "limits.tls_handshake_timeout: is longer than preauth_timeout",
		"audit: {path: audit.log}":                        "audit.path: \"audit.log\" is not an absolute path, - or empty",
		"audit: {on_failure: shrug}":                      `"shrug" is not one of block, drop`,
		"admin: {address: \"0.0.0.0:9143\"}":              "admin.address: \"0.0.0.0:9143\" is not on loopback, so a token is needed",
		"admin: {address: \":9143\"}":                     "is not on loopback",
		"admin: {token_file: " + password + "}":           "admin.token_file: the token has fewer than 16 characters",
	} {
		_, err := parse("f.yaml", []byte(text), noEnv)
		if err == nil {
			t.Errorf("accepted: %s", text)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
		var invalid *InvalidError
		if !errors.As(err, &invalid) {
			t.Fatalf("%s: %T", text, err)
		}
		for _, p := range invalid.Problems {
			if p.Line < 1 || p.Column < 1 {
				t.Errorf("%s: no position of %+v", text, p)
			}
		}
	}
}

// A file may contain blocks that are not in use: static routes with source: redis, a
// master user with login: passthrough.
func TestUnusedBlocksAreAccepted(t *testing.T) {
	cfg := mustParse(t, `
listeners: [{address: "0.0.0.0:993", tls: implicit}]
tls: {min_version: "1.2", certificates: [{cert: /c, key: /k}], client_ca: ""}
redis: {addresses: ["127.0.0.1:6379"], cluster: false, sentinel_master: "", username: "", password_file: "", tls: false, ca: "", prefix: "imapgate:"}
auth: {methods: [passthrough], default_domain: "", file: {path: /etc/imapgate/users}}
routing:
  source: redis
  static: {users: {alice@example.org: east}, domains: {example.org: east}, default: ""}
backends:
  east:
    address: mail-east.internal:993
    login: passthrough
    master: {user: gateway, password_file: /nonexistent, style: authzid, separator: "*"}
limits: {}
`)
	if !cfg.Backends["east"].Master.Password.IsZero() {
		t.Error("an unused secret was read")
	}
}

func TestRedisHasADatabaseASocketAndSentinelsWithAPassword(t *testing.T) {
	file := writeSecretFile(t, "s3cret\n")
	c := mustParse(t, minimal+`redis: {addresses: ["unix:///run/redis.sock"], database: 7}`)
	if c.Redis.Database != 7 || c.Redis.Addresses[0] != "unix:///run/redis.sock" {
		t.Errorf("%+v", c.Redis)
	}
	c = mustParse(t, minimal+`redis: {addresses: ["s1:26379"], sentinel_master: m, sentinel_username: gate, sentinel_password_file: `+file+`}`)
	if c.Redis.SentinelUsername != "gate" || c.Redis.SentinelPassword.Reveal() != "s3cret" || !c.Redis.Password.IsZero() {
		t.Errorf("%+v", c.Redis)
	}
	for block, want := range map[string]string{
		`{cluster: true, database: 1}`:                            "redis.database: is for one server or sentinels: a cluster has database 0 only",
		`{database: -1}`:                                          "redis.database: \"-1\" is less than 0",
		`{sentinel_username: gate}`:                               "redis.sentinel_username: is used only with sentinel_master",
		`{sentinel_password_file: /x}`:                            "redis.sentinel_password_file: is used only with sentinel_master",
		`{sentinel_master: m, sentinel_username: gate}`:           "redis.sentinel_username: needs sentinel_password_file or IMAPGATE_REDIS_SENTINEL_PASSWORD",
		`{addresses: ["unix:///s"], cluster: true}`:               "redis.addresses[0]: a unix socket leads to one server",
		`{addresses: ["unix:///s"], sentinel_master: m}`:          "redis.addresses[0]: a unix socket leads to one server",
		`{addresses: ["unix:///s"], tls: true}`:                   "redis.addresses[0]: Redis does not support TLS on a unix socket",
		`{addresses: ["unix:s"]}`:                                 "redis.addresses[0]: \"unix:s\": the port is not a number",
		`{addresses: ["/run/redis.sock"]}`:                        "redis.addresses[0]: \"/run/redis.sock\" is neither host:port nor unix:///path",
		`{addresses: ["redis://h:6379"]}`:                         "redis.addresses[0]: \"redis://h:6379\" is neither host:port nor unix:///path",
		`{sentinel_master: m, sentinel_password_file: /none/x}`:   "redis.sentinel_password_file: no such file",
		`{sentinel_master: m, sentinel_password_file: ` + "/dev}": "redis.sentinel_password_file: is not a regular file",
	} {
		_, err := parse("f.yaml", []byte(minimal+"redis: "+block), noEnv)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "f.yaml:5:") {
			t.Errorf("%s: %v, want %q", block, err, want)
		}
	}
}

func TestFilesWrittenOnWindowsAreRead(t *testing.T) {
	file := writeSecretFile(t, "\xef\xbb\xbfs3cret\r\n")
	c := mustParse(t, "\xef\xbb\xbf"+strings.ReplaceAll(minimal+"redis: {password_file: "+file+"}\n", "\n", "\r\n"))
	if c.Redis.Password.Reveal() != "s3cret" {
		t.Errorf("%q", c.Redis.Password.Reveal())
	}
	if _, err := parse("f.yaml", []byte("\xff\xfer\x00"), noEnv); err == nil || err.Error() != "f.yaml:1:1: it is written in UTF-16; save it as UTF-8" {
		t.Errorf("%v", err)
	}
	wide := writeSecretFile(t, "\xff\xfes\x00")
	if _, err := parse("f.yaml", []byte(minimal+"redis: {password_file: "+wide+"}"), noEnv); err == nil || !strings.Contains(err.Error(), "UTF-16") {
		t.Errorf("%v", err)
	}
}

func TestTabIndentationIsExplained(t *testing.T) {
	for text, at := range map[string]string{
		"redis:\n\tprefix: x\n":                     "2:1",
		"redis:\n  cluster: true\n  \tprefix: x\n":  "3:3",
		"\tredis: {}\n":                             "1:1",
		"redis:\n  addresses:\n  - \tprefix: x\n":   "3:5",
		"log:\n  level: info\n\n\t# a remark\n":     "4:1",
		"\xef\xbb\xbflog:\r\n\tlevel: info\r\n":     "2:1",
		"listeners:\n- address: x\n\ttls: none\n":   "3:1",
		"listeners:\n- address: x\n \ttls: none\n":  "3:2",
		"backends:\n\teast:\n\t\taddress: a:143\n":  "2:1",
		"routing:\n  static:\n    users:\n\t\ta: b": "4:1",
	} {
		_, err := parse("f.yaml", []byte(text), noEnv)
		want := "f.yaml:" + at + ": tabs are not allowed for indentation, use spaces"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestLocateGivesErrorsTheirPosition(t *testing.T) {
	c, err := parse("f.yaml", []byte(minimal+"audit: {sinks: [{type: stdout}, {type: file, path: /x}]}\n"), noEnv)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Locate(nil); got != nil {
		t.Errorf("%v", got)
	}
	wrong := errors.New("wrong")
	got := c.Locate(errors.Join(
		WithKey("audit.sinks[1].path", wrong), WithKey("audit.sinks[0].path", wrong), WithKey("backends.east", WithKey("backends.east.ca", wrong)),
		WithKey("tls", errors.Join(WithKey("tls.certificates[0].key", wrong), errors.Join(wrong, errors.Join(wrong)))), WithKey("limits.drain_timeout", fmt.Errorf("%w: %w", wrong, wrong)), wrong, WithKey("x", nil)))
	want := `f.yaml: wrong
f.yaml:1:1: limits.drain_timeout: wrong: wrong
f.yaml:2:1: tls: wrong
f.yaml:2:1: tls: wrong
f.yaml:2:42: tls.certificates[0].key: wrong
f.yaml:4:12: backends.east.ca: wrong
f.yaml:5:17: audit.sinks[0].path: wrong
f.yaml:5:52: audit.sinks[1].path: wrong`
	if got == nil || got.Error() != want {
		t.Errorf("%v", got)
	}
}

func TestSplitErrorsFlattensNestedJoins(t *testing.T) {
	a, b, both := errors.New("a"), errors.New("b"), fmt.Errorf("%w and %w", io.EOF, io.ErrNoProgress)
	for _, c := range []struct {
		err  error
		want []error
	}{
		{nil, nil}, {a, []error{a}}, {both, []error{both}}, {errors.Join(a), []error{a}},
		{errors.Join(a, errors.Join(b, errors.Join(both)), a), []error{a, b, both, a}},
	} {
		if got := SplitErrors(c.err); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q", c.err, got)
		}
	}
}

func TestAKeyThatWasRenamedIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"limits: {drain: 30s}":                                 "limits.drain: was renamed to drain_timeout",
		"limits: {failures: {ban: 10m}}":                       "limits.failures.ban: was renamed to ban_duration",
		"limits: {exempt: []}":                                 "limits.exempt: was renamed to exempt_networks",
		"listeners: [{limits: {budget: {}}}]":                  "listeners[0].limits.budget: was renamed to user_quota",
		"backends: {east: {address: h:1, mux: {learn: lazy}}}": "backends.east.mux.learn: was renamed to uid_prefetch",
	} {
		_, err := parse("f.yaml", []byte(text), noEnv)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
