package tlsconf

import (
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// ServerConfig is the `tls` block of the configuration.
type ServerConfig struct {
	MinVersion   string    // "1.2" (also "") or "1.3"
	Certificates []KeyPair // chosen by SNI; the first is the default
	ClientCA     string    // PEM file; set: client certificates are asked for and verified
}

// KeyPair names the files of a certificate chain and its key.
type KeyPair struct{ Cert, Key string }

// Server is the listeners' side of TLS.
type Server struct {
	// Set once.
	cfg     ServerConfig
	version uint16
	log     *zap.Logger

	current atomic.Pointer[tls.Config]

	mu sync.Mutex
	// Guarded by mu.
	pairs  []*pair        // as last good, in the configuration's order
	trust  trust          // as last good
	warned map[string]int // certificate file → index in expiryWarnings last spoken
}

// Certificate is what an operator wants to know of a served certificate.
type Certificate struct {
	File     string
	NotAfter time.Time
}

// NewServer loads every file. An error names the file and the reason; all
// errors are reported at once.
func NewServer(cfg ServerConfig, log *zap.Logger) (*Server, error) {
	min, err := version(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	if len(cfg.Certificates) == 0 {
		return nil, errors.New("no certificate is configured")
	}
	s := &Server{cfg: cfg, version: min, log: log, warned: make(map[string]int)}
	var errs []error
	for _, files := range cfg.Certificates {
		p, err := loadPair(files)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.pairs = append(s.pairs, p)
	}
	if s.trust, err = loadTrust(cfg.ClientCA); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	s.publish()
	return s, nil
}

// Config is the configuration for a connection that begins now. All
// connections of a generation share it.
func (s *Server) Config() *tls.Config { return s.current.Load() }

// Certificates lists what is being served.
func (s *Server) Certificates() []Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Certificate, len(s.pairs))
	for i, p := range s.pairs {
		list[i] = Certificate{File: p.files.Cert, NotAfter: p.cert.Leaf.NotAfter}
	}
	return list
}

// Reload reads the files again. What cannot be used is named in the error and
// the last good version of it stays in service; the rest is taken over. It
// reports whether a new generation was made.
func (s *Server) Reload() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i, old := range s.pairs {
		p, err := loadPair(old.files)
		if err == nil {
			err = worse(old, p)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if p.sum != old.sum {
			s.pairs[i], changed = p, true
			delete(s.warned, p.files.Cert)
		}
	}
	trust, err := loadTrust(s.cfg.ClientCA)
	if err != nil {
		errs = append(errs, err)
	} else if trust.sum != s.trust.sum {
		s.trust, changed = trust, true
	}
	if changed {
		s.publish()
	}
	return changed, errors.Join(errs...)
}

// worse refuses a new certificate that nobody would accept in place of one
// that is still good. One expired certificate may replace another.
func worse(old, p *pair) error {
	now := time.Now()
	if p.sum == old.sum || p.valid(now) || !old.valid(now) {
		return nil
	}
	return fmt.Errorf("certificate %s is valid only from %s to %s", p.files.Cert,
		p.cert.Leaf.NotBefore.UTC().Format(time.RFC3339), p.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
}

// publish makes the next generation from what was loaded; mu is held. A new
// tls.Config has new ticket keys, so a session that was accepted under other
// client CAs cannot be resumed into this generation.
func (s *Server) publish() {
	names := newNameTable(s.pairs)
	cfg := &tls.Config{
		MinVersion:     s.version,
		GetCertificate: names.certificate,
		// Asked in every handshake, also in one that resumes and serves nothing: the
		// session is of this generation, because the ticket keys are.
		GetConfigForClient: names.note,
		NextProtos:         []string{protocol},
		// Small first records help web pages, not mail: bulk goes out in full ones.
		DynamicRecordSizingDisabled: true,
	}
	if s.trust.pool != nil {
		cfg.ClientCAs = s.trust.pool
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	s.current.Store(cfg)
}

func loadTrust(name string) (trust, error) {
	if name == "" {
		return trust{}, nil
	}
	pool, sum, err := loadPool(name)
	if err != nil {
		return trust{}, fmt.Errorf("client CA: %w", err)
	}
	return trust{pool: pool, sum: sum}, nil
}
