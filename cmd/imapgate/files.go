package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/follow"
	"imapgate/proxy/upstream"
	"imapgate/tlsconf"
)

// files are all that the configuration names files for and that follows them while the
// gateway runs: the listeners' certificates, the TLS of each server that the gateway
// connects to, and secrets. The passwd-file is followed by auth, which owns it.
type files struct {
	*follow.Set

	// Set once.
	server  *tlsconf.Server            // nil without TLS listeners
	clients map[string]*tlsconf.Client // by the key of the block that configures it
}

// openFiles reads every file for the first time. It gives what could be opened, and an
// error for each that could not.
func openFiles(cfg *config.Config, log *zap.Logger) (*files, []keyed) {
	f := &files{Set: follow.NewSet(log), clients: make(map[string]*tlsconf.Client)}
	var wrong []keyed
	if needsTLS(cfg) {
		server, err := tlsconf.NewServer(cfg.TLS.Server(), log)
		if err != nil {
			wrong = append(wrong, keyed{"tls", err})
		} else {
			f.server = server
			f.Add("tls", server)
		}
	}
	for _, c := range clientsOf(cfg) {
		client, err := tlsconf.NewClient(c.cfg, log)
		if err != nil {
			wrong = append(wrong, keyed{c.key, err})
			continue
		}
		f.clients[c.key] = client
		f.Add(c.key, client)
	}
	for _, secret := range cfg.SecretFiles {
		f.Add(secret.Key, secret)
	}
	return f, wrong
}

// keyed is an error about files that are named in one block.
type keyed struct {
	key string
	err error
}

// joined is all errors as one.
func joined(wrong []keyed) error {
	errs := make([]error, len(wrong))
	for i, w := range wrong {
		errs[i] = fmt.Errorf("%s: %w", w.key, w.err)
	}
	return errors.Join(errs...)
}

// client is the TLS of the block with this key; nil where it has none.
func (f *files) client(key string) func() *tls.Config {
	c := f.clients[key]
	if c == nil {
		return nil
	}
	return c.Config
}

// certificates lists what is served, and what is shown to other servers.
func (f *files) certificates() (list []tlsconf.Certificate) {
	if f.server != nil {
		list = f.server.Certificates()
	}
	for _, c := range f.clients {
		list = append(list, c.Certificates()...)
	}
	return list
}

// clientConfig is the TLS towards the servers of one block.
type clientConfig struct {
	key string
	cfg tlsconf.ClientConfig
}

const (
	redisKey    = "redis"
	authHTTPKey = "auth.http"
	oauthKey    = "auth.oauth"
)

func backendKey(name string) string { return "backends." + name }
func sinkKey(i int) string          { return fmt.Sprintf("audit.sinks[%d]", i) }

// clientsOf is the TLS towards every server that the gateway connects to. Where a name is
// left open, the servers are verified by the host they are connected to.
func clientsOf(cfg *config.Config) (list []clientConfig) {
	add := func(key string, c tlsconf.ClientConfig) { list = append(list, clientConfig{key, c}) }
	if r := cfg.Redis; r != nil && r.TLS {
		add(redisKey, tlsconf.ClientConfig{CA: r.CA, ServerName: r.ServerName, Certificate: r.ClientCertificate.Pair()})
	}
	if h := cfg.Auth.HTTP; slices.Contains(cfg.Auth.Methods, auth.HTTP) && slices.ContainsFunc(h.URLs, isHTTPS) {
		add(authHTTPKey, tlsconf.ClientConfig{CA: h.CA, Certificate: tlsconf.KeyPair{Cert: h.Cert, Key: h.Key}})
	}
	if o := cfg.Auth.OAuth; slices.Contains(cfg.Auth.Methods, auth.OAuth) {
		add(oauthKey, tlsconf.ClientConfig{CA: o.CA, Certificate: o.ClientCertificate.Pair()})
	}
	for i, s := range cfg.Audit.Sinks {
		if address, ok := strings.CutPrefix(s.Address, "tls://"); ok && s.Type == audit.Syslog {
			add(sinkKey(i), tlsconf.ClientConfig{CA: s.CA, ServerName: cmp.Or(s.ServerName, hostOf(address)), Certificate: s.ClientCertificate.Pair()})
		}
	}
	for name, b := range cfg.Backends {
		if b.TLS != string(upstream.NoTLS) {
			add(backendKey(name), tlsconf.ClientConfig{CA: b.CA, ServerName: cmp.Or(b.ServerName, hostOf(b.Address)),
				Certificate: b.ClientCertificate.Pair(), ALPN: tlsconf.IMAP})
		}
	}
	slices.SortFunc(list, func(a, b clientConfig) int { return strings.Compare(a.key, b.key) })
	return list
}

func isHTTPS(raw string) bool {
	u, err := authhttp.ParseURL(raw)
	return err == nil && u.Scheme == "https"
}

// hostOf is the host of an address that was checked with the configuration.
func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// doubts are what is wrong in the directory of certificates beside those that are served.
// The gateway starts without it: a renewal may be under way.
func (f *files) doubts() (list []string) {
	if f.server == nil {
		return nil
	}
	_, err := f.server.Reload()
	for _, one := range apart(err) {
		list = append(list, "tls.certificate_dir: "+one.Error()+"; the gateway starts without it")
	}
	return list
}
