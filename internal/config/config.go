// Package config reads the gateway's one YAML file. It returns a Config that is
// complete and valid, or all problems, each with file, line, column and what was
// expected.
//
// Each package declares its own settings, with defaults, bounds and documentation in the
// struct tags that package settings describes. Config composes them: the strict decoder,
// the checks that involve several keys and docs/CONFIG.md follow from the tags. Secrets are
// read here, from files or the environment, and never appear in an error. The package does
// not open certificates or connect to anything; only cmd imports it and passes the parts on.
package config

import (
	"crypto/sha256"
	"maps"
	"reflect"
	"slices"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/auth/oauth"
	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/fleet"
	"imapgate/internal/limit"
	"imapgate/internal/settings"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

//go:generate go test . -run TestReferenceIsCurrent -update

// Config is the whole file, composed of the settings of all packages. Package settings
// describes the tags.
type Config struct {
	Gateway   fleet.Settings         `yaml:"gateway" doc:"This gateway among others that share the Redis."`
	Listeners []Listener             `yaml:"listeners" doc:"Where clients connect. Left out: one listener, 0.0.0.0:993 with implicit TLS."`
	TLS       tlsconf.ServerSettings `yaml:"tls" doc:"Certificates and TLS policy of the listeners. Required if a listener uses TLS."`
	Redis     *routing.RedisSettings `yaml:"redis" doc:"The Redis that holds routes (and passwords, with auth method redis). Left out: the gateway runs without Redis."`
	Auth      Auth                   `yaml:"auth" doc:"How clients are authenticated."`
	Routing   routing.Settings       `yaml:"routing" doc:"Which backend a user's mail is on."`
	Backends  map[string]Backend     `yaml:"backends" doc:"The mail servers, by name. A route can only name one of these. At least one is needed. A name has 1 to 63 characters of a-z, 0-9, - and _ and begins with a letter or digit."`
	Limits    Limits                 `yaml:"limits" doc:"Timeouts and bounds."`
	Audit     audit.Settings         `yaml:"audit" doc:"The audit log: one line of JSON for every login attempt and every end of a connection."`
	Log       Log                    `yaml:"log" doc:"The ordinary log, on standard error."`
	Admin     admin.Settings         `yaml:"admin" doc:"The HTTP address for metrics and health."`

	SecretFiles []*SecretFile `yaml:"-"` // the files that secrets were read from

	file      string              `yaml:"-"`
	positions map[string]position `yaml:"-"` // position of each key in the file
	hash      [sha256.Size]byte   `yaml:"-"` // of the file
}

// Listener is one address clients connect to.
type Listener struct {
	proxy.ListenerSettings
	Mechanisms []string        `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, EXTERNAL]" reload:"new" doc:"The subset of auth.mechanisms that clients of this listener may use. Left out: all. The LOGIN command is allowed with PLAIN or LOGIN."`
	Limits     *limit.Settings `yaml:"limits" override:"true" doc:"Overrides of limits for this listener."`
}

// Auth configures how clients are authenticated.
type Auth struct {
	auth.Settings
	HTTP  authhttp.Settings `yaml:"http" doc:"For the method http: auth servers that speak the protocol of nginx's auth_http."`
	OAuth oauth.Settings    `yaml:"oauth" doc:"For the method oauth: the provider of the bearer tokens that clients send with OAUTHBEARER and XOAUTH2."`
}

// Backend is one mail server.
type Backend struct {
	Name string `yaml:"-"` // its key
	upstream.Settings
	proxy.BackendSettings
}

// Limits are timeouts and bounds.
type Limits struct {
	proxy.LimitSettings
	upstream.LoginSettings
	auth.HashSettings
	limit.Settings
}

// LimitsOf returns the limits of a listener.
func (c *Config) LimitsOf(l Listener) limit.Settings {
	if l.Limits == nil {
		return c.Limits.Settings
	}
	return settings.Override(c.Limits.Settings, *l.Limits)
}

// Log is the ordinary log.
type Log struct {
	Level  string `yaml:"level" default:"info" oneof:"debug info warn error" reload:"live" doc:"The lowest level that is written."`
	Format string `yaml:"format" default:"json" oneof:"json console" reload:"restart" doc:"json for machines, console for people."`
}

// ChangedKeys returns the keys whose values differ between two configurations, in
// the form of Problem.Key. A list that differs is one key. The contents of files and
// of the environment are not compared.
func (c *Config) ChangedKeys(other *Config) []string {
	return changedKeys(reflect.ValueOf(*c), reflect.ValueOf(*other), "")
}

func changedKeys(a, b reflect.Value, key string) (keys []string) {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	switch {
	case a.Kind() == reflect.Struct && len(settings.Fields(a.Type())) > 0:
		for _, f := range settings.Fields(a.Type()) {
			keys = append(keys, changedKeys(a.FieldByIndex(f.Index), b.FieldByIndex(f.Index), MemberKey(key, f.Name))...)
		}
	case a.Kind() == reflect.Map:
		for _, name := range mapKeys(a, b) {
			valueA, valueB := a.MapIndex(reflect.ValueOf(name)), b.MapIndex(reflect.ValueOf(name))
			if !valueA.IsValid() || !valueB.IsValid() {
				keys = append(keys, MemberKey(key, name))
			} else {
				keys = append(keys, changedKeys(valueA, valueB, MemberKey(key, name))...)
			}
		}
	case !reflect.DeepEqual(a.Interface(), b.Interface()):
		keys = append(keys, key)
	}
	return keys
}

// mapKeys returns the names in any of the maps, sorted.
func mapKeys(values ...reflect.Value) []string {
	names := make(map[string]bool)
	for _, m := range values {
		for _, name := range m.MapKeys() {
			names[name.String()] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
