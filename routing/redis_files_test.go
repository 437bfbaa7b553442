package routing

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/tlsconf"
)

func TestARedisThatDemandsACertificateIsShownOne(t *testing.T) {
	ca := testbed.NewCA(t)
	s, address := testbed.StartRedisTLS(t, ca, "--tls-auth-clients", "yes")
	s.CLI("hset", "imapgate:user:alice", "backend", "west")
	showing := func(name, cert, key string) func() *tls.Config {
		c, err := tlsconf.NewClient(tlsconf.ClientConfig{CA: ca.File, ServerName: name, Certificate: tlsconf.KeyPair{Cert: cert, Key: key}}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		return c.Config
	}
	good, goodKey := ca.Issue(t, "gateway")
	wrong, wrongKey := testbed.NewCA(t).Issue(t, "gateway")
	for name, c := range map[string]struct {
		tls  func() *tls.Config
		want string // in the error; "": none
	}{
		"by the host that is dialed":  {showing("", good, goodKey), ""},
		"by another name that it has": {showing("localhost", good, goodKey), ""},
		"by a name that it has not":   {showing("redis.internal", good, goodKey), "not redis.internal"},
		"none":                        {showing("", "", ""), "demands a client certificate, and none is configured"},
		"another's":                   {showing("", wrong, wrongKey), "does not accept the client certificate"},
	} {
		r := open(t, dial(t, RedisConfig{Addresses: []string{address}, TLS: c.tls}))
		got, err := r.Lookup(t.Context(), user(t, "alice"))
		if c.want == "" {
			if err != nil || got.Backend != "west" {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			follow(t, r)
			continue
		}
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
	}
}

func TestANewPasswordIsUsedForNewConnections(t *testing.T) {
	rights := []string{"~imapgate:*", "+hgetall", "+echo", "+ping", "+hello", "+client|tracking"}
	s := testbed.StartRedis(t, append([]string{"--user", "gate", "on", ">old"}, rights...)...)
	password := identity.NewLiveSecret("old")
	r := open(t, dial(t, RedisConfig{Addresses: []string{s.Address}, Username: "gate", Password: password.Secret()}))
	follow(t, r)
	s.CLI("acl", "setuser", "gate", "resetpass", ">new")
	password.Replace("new")
	s.CLI("client", "kill", "user", "gate")
	moves(t, r, s.CLI)
	testbed.Within(t, testbed.Patience, "the change channel to be up again", func() bool { return r.channels.status().State == ChannelUp })
}
