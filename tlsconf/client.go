package tlsconf

import (
	"crypto/tls"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// maxClientSessions bounds the resumption cache of one client. crypto/tls keeps
// one session per server name, so a handful is plenty.
const maxClientSessions = 8

// ClientConfig says whom to trust as a server, and what to show it.
type ClientConfig struct {
	CA          string    // PEM file of roots; "" is the system's roots
	ServerName  string    // the name the certificate must have; "": whoever connects sets it, or the handshake fails
	MinVersion  string    // "1.2" (also "") or "1.3"
	Certificate CertFiles // shown to a server that asks for one; zero: none
	ALPN        string    // the protocol offered; "" offers none
}

// Client is the gateway's side of TLS towards one server, or several with one
// configuration. The server's certificate is always verified, by crypto/tls itself;
// there is no switch to turn that off.
type Client struct {
	// Set once.
	cfg        ClientConfig
	minVersion uint16
	log        *zap.Logger

	current atomic.Pointer[tls.Config]

	mu sync.Mutex
	// Guarded by mu.
	pair   *keyPair // as last good; nil without a certificate
	cas    caPool   // as last good; pool is nil for the system's roots
	expiry expiryWarner
}

// NewClient loads the files. An error names the file and the reason.
func NewClient(cfg ClientConfig, log *zap.Logger) (*Client, error) {
	minVersion, err := parseVersion(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, minVersion: minVersion, log: log, expiry: make(expiryWarner)}
	var errs []error
	if c.cas, err = loadCAs(cfg.CA); err != nil {
		errs = append(errs, err)
	}
	if cfg.Certificate != (CertFiles{}) {
		if c.pair, err = loadKeyPair(cfg.Certificate); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	c.rebuildConfig()
	return c, nil
}

// Config is the configuration for a connection that begins now. It is shared by all
// connections of a generation, so that they resume; one made again after a change of
// files resumes nothing that was trusted, or shown a certificate, under the old ones.
func (c *Client) Config() *tls.Config { return c.current.Load() }

// Settings is what c was made of.
func (c *Client) Settings() ClientConfig { return c.cfg }

// Files gives the files that Reload reads.
func (c *Client) Files() (files []string) {
	for _, file := range []string{c.cfg.CA, c.cfg.Certificate.Cert, c.cfg.Certificate.Key} {
		if file != "" {
			files = append(files, file)
		}
	}
	return files
}

// Certificates lists what servers are shown.
func (c *Client) Certificates() []Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return describeCertificates(c.pairs())
}

func (c *Client) pairs() []*keyPair {
	return slices.DeleteFunc([]*keyPair{c.pair}, func(p *keyPair) bool { return p == nil })
}

// Reload reads the files again. What cannot be used is named in the error and
// the last good version of it stays in service; the rest is taken over. It
// reports whether a new generation was made.
func (c *Client) Reload() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if cas, err := loadCAs(c.cfg.CA); err != nil {
		errs = append(errs, err)
	} else if cas.checksum != c.cas.checksum {
		c.cas, changed = cas, true
	}
	if c.pair != nil {
		p, err := c.pair.reload()
		if err != nil {
			errs = append(errs, err)
		} else if p.checksum != c.pair.checksum {
			c.pair, changed = p, true
		}
	}
	if changed {
		c.rebuildConfig()
	}
	c.expiry.warnExpiring(c.log, c.pairs(), time.Now())
	return changed, errors.Join(errs...)
}

// rebuildConfig makes the next generation from what was loaded; mu is held.
func (c *Client) rebuildConfig() {
	cfg := &tls.Config{
		MinVersion:                  c.minVersion,
		RootCAs:                     c.cas.pool,
		ServerName:                  c.cfg.ServerName,
		ClientSessionCache:          tls.NewLRUClientSessionCache(maxClientSessions),
		DynamicRecordSizingDisabled: true,
	}
	if c.cfg.ALPN != "" {
		cfg.NextProtos = []string{c.cfg.ALPN}
	}
	if c.pair != nil {
		cert := c.pair.cert
		// Sent whatever authorities the server names: the list may lack an intermediate,
		// and a certificate that is refused is easier to explain than one that was not sent.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c.current.Store(cfg)
}
