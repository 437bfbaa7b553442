package routing

import (
	"crypto/tls"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/tlsconf"
)

func TestAClientCertificateIsPresentedToRedis(t *testing.T) {
	ca := testbed.NewCA(t)
	s, address := testbed.StartRedisTLS(t, ca, "--tls-auth-clients", "yes")
	s.CLI("hset", "imapgate:user:alice", "backend", "west")
	tlsWith := func(name, cert, key string) func() *tls.Config {
		c, err := tlsconf.NewClient(tlsconf.ClientConfig{CA: ca.File, ServerName: name, Certificate: tlsconf.CertFiles{Cert: cert, Key: key}}, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		return c.Config
	}
	good, goodKey := ca.Issue(t, "gateway")
	wrong, wrongKey := testbed.NewCA(t).Issue(t, "gateway")
	for name, c := range map[string]struct {
		tls  func() *tls.Config
		want string // part of the error; "": none
	}{
		"by the host that is dialed":  {tlsWith("", good, goodKey), ""},
		"by another name that it has": {tlsWith("localhost", good, goodKey), ""},
		"by a name that it has not":   {tlsWith("redis.internal", good, goodKey), "not redis.internal"},
		"none":                        {tlsWith("", "", ""), "demands a client certificate, and none is configured"},
		"another's":                   {tlsWith("", wrong, wrongKey), "does not accept the client certificate"},
	} {
		r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}, TLSConfig: c.tls}))
		got, err := r.Lookup(t.Context(), user(t, "alice"))
		if c.want == "" {
			if err != nil || got.Backend != "west" {
				t.Errorf("%s: %v, %v", name, got, err)
			}
			startAndAwaitUp(t, r)
			continue
		}
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not contain %q", name, err, c.want)
		}
	}
}

func TestARenewedPasswordIsUsedForNewConnections(t *testing.T) {
	rights := []string{"~imapgate:*", "+hgetall", "+echo", "+ping", "+hello", "+client|tracking"}
	s := testbed.StartRedis(t, append([]string{"--user", "gate", "on", ">old"}, rights...)...)
	password := identity.NewLiveSecret("old")
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}, Username: "gate", Password: password.Secret()}}))
	startAndAwaitUp(t, r)
	s.CLI("acl", "setuser", "gate", "resetpass", ">new")
	password.Replace("new")
	s.CLI("client", "kill", "user", "gate")
	checkMoves(t, r, s.CLI)
	testkit.Eventually(t, "the invalidation connection to be up again", func() bool { return r.invalidator.status().State == InvalidationUp })
}
