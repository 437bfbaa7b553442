package tlsconf

import (
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// maxClientSessions bounds the resumption cache of one Client. crypto/tls keeps one session per
// server name, and a backend may have 64 addresses.
const maxClientSessions = 64

// ClientConfig configures which servers are trusted, and the client certificate.
type ClientConfig struct {
	CA          string    // PEM file of roots; "" is the system's roots
	ServerName  string    // name that the certificate must have; "": the caller sets it, or the handshake fails
	MinVersion  string    // "1.2" (also "") or "1.3"
	Certificate CertFiles // client certificate for servers that request one; zero: none
	ALPN        string    // the protocol offered; "": none
}

// Client is the client side of TLS for one server, or for several with one configuration.
// crypto/tls always verifies the server's certificate; no setting disables that.
type Client struct {
	// Set once.
	cfg        ClientConfig
	minVersion uint16
	log        *zap.Logger

	current atomic.Pointer[tls.Config]

	mu sync.Mutex
	// Guarded by mu.
	loadedFiles // at most one certificate; without CAs, the system's roots
}

// NewClient loads the files. An error names the file and the reason.
func NewClient(cfg ClientConfig, log *zap.Logger) (*Client, error) {
	minVersion, err := parseVersion(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, minVersion: minVersion, log: log}
	var certificates []CertFiles
	if cfg.Certificate != (CertFiles{}) {
		certificates = append(certificates, cfg.Certificate)
	}
	if c.loadedFiles, err = loadFiles(certificates, cfg.CA); err != nil {
		return nil, err
	}
	c.rebuildConfig()
	return c, nil
}

// Config returns the configuration for a new connection. All connections of a generation share
// it, so that they can resume. A generation made after a change of files resumes no session of
// the old one.
func (c *Client) Config() *tls.Config { return c.current.Load() }

// Settings returns the ClientConfig of c.
func (c *Client) Settings() ClientConfig { return c.cfg }

// Files returns the files that Reload reads.
func (c *Client) Files() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.names()
}

// Certificates returns the client certificates.
func (c *Client) Certificates() []Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return describeCertificates(c.configured)
}

// Reload reads the files again. The error names each unusable file, whose last good version
// stays in service; all others take effect. It reports whether a new generation was made.
func (c *Client) Reload() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed, err = c.reload()
	if changed {
		c.rebuildConfig()
	}
	c.expiry.warnExpiring(c.log, c.configured, time.Now())
	return changed, err
}

// rebuildConfig makes the next generation from the loaded files; the caller holds mu.
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
	if len(c.configured) > 0 {
		cert := c.configured[0].cert
		// Sent for any list of authorities, because the list may lack an intermediate,
		// and a refusal is easier to explain than a missing certificate.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	c.current.Store(cfg)
}
