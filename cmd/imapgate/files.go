package main

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

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
	keys    fileKeys                   // of what listeners show and trust
	server  *tlsconf.Server            // nil without TLS listeners
	clients map[string]*tlsconf.Client // by the key of the block that configures it
}

// openFiles reads every file for the first time. It gives what could be opened, and an
// error of config.At for each that could not.
func openFiles(cfg *config.Config, log *zap.Logger) (*files, error) {
	f := &files{Set: follow.NewSet(log), keys: certificateKeys(cfg), clients: make(map[string]*tlsconf.Client)}
	var wrong []error
	if needsTLS(cfg) {
		server, err := tlsconf.NewServer(cfg.TLS.Server(), log)
		if err != nil {
			wrong = append(wrong, f.keys.place(certificatesKey(cfg), err))
		} else {
			f.server = server
			f.Add("tls", server)
		}
	}
	for _, c := range clientsOf(cfg) {
		client, err := tlsconf.NewClient(c.cfg, log)
		if err != nil {
			wrong = append(wrong, c.keys().place(c.key, err))
			continue
		}
		f.clients[c.key] = client
		f.Add(c.key, client)
	}
	for _, secret := range cfg.SecretFiles {
		f.Add(secret.Key, secret)
	}
	return f, errors.Join(wrong...)
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

func backendKey(name string) string { return config.Below("backends", name) }
func sinkKey(i int) string          { return config.Indexed("audit.sinks", i) }

// keys are those of its files.
func (c clientConfig) keys() fileKeys {
	own := c.key + ".client_certificate"
	if c.key == authHTTPKey {
		own = c.key
	}
	return fileKeys{c.cfg.Certificate.Cert: own + ".cert", c.cfg.Certificate.Key: own + ".key", c.cfg.CA: c.key + ".ca"}
}

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

// doubts are what clients, or the gateway, will have against files that can be used all
// the same, and what is wrong in the directory of certificates beside those that are
// served: the gateway starts without it, because a renewal may be under way.
func (f *files) doubts(now time.Time) error {
	var doubts []error
	if f.server != nil {
		for _, one := range config.Parts(f.server.Unused()) {
			doubts = append(doubts, f.keys.place(directoryKey, fmt.Errorf("%w; the gateway starts without it", one)))
		}
		doubts = append(doubts, f.keys.place(directoryKey, f.server.Examine(now)))
	}
	for _, key := range slices.Sorted(maps.Keys(f.clients)) {
		c := clientConfig{key: key, cfg: f.clients[key].Settings()}
		doubts = append(doubts, c.keys().place(key, f.clients[key].Examine(now)))
	}
	return errors.Join(doubts...)
}
