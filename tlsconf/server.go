package tlsconf

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// ServerConfig is the `tls` block of the configuration.
type ServerConfig struct {
	MinVersion   string      // "1.2" (also "") or "1.3"
	Certificates []CertFiles // chosen by SNI; the first is the default
	Directory    string      // whose pairs come behind Certificates; "" is none
	ClientCA     string      // PEM file; set: client certificates are asked for and verified
}

// CertFiles names the files of a certificate chain and its key.
type CertFiles struct{ Cert, Key string }

// Server is the listeners' side of TLS.
type Server struct {
	// Set once.
	cfg        ServerConfig
	minVersion uint16
	log        *zap.Logger

	current atomic.Pointer[tls.Config]

	mu sync.Mutex
	// Guarded by mu.
	configured []*keyPair // of Certificates, as last good, in their order
	dir        *directory // nil without one
	cas        caPool     // as last good
	expiry     expiryWarner
}

// Certificate is what an operator wants to know of a served certificate.
type Certificate struct {
	File     string
	NotAfter time.Time
}

// NewServer loads every file. An error names the file and the reason; all
// errors are reported at once. Of a directory only its pairs are needed: what else is
// wrong there, Unused and Reload say.
func NewServer(cfg ServerConfig, log *zap.Logger) (*Server, error) {
	minVersion, err := parseVersion(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	if len(cfg.Certificates) == 0 && cfg.Directory == "" {
		return nil, errors.New("no certificate is configured")
	}
	s := &Server{cfg: cfg, minVersion: minVersion, log: log, expiry: make(expiryWarner)}
	var errs []error
	for _, files := range cfg.Certificates {
		p, err := loadKeyPair(files)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.configured = append(s.configured, p)
	}
	if s.cas, err = loadCAs(cfg.ClientCA); err != nil {
		errs = append(errs, err)
	}
	if cfg.Directory != "" {
		errs = append(errs, s.openDirectory()...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.rebuildConfig()
	return s, nil
}

// openDirectory reads the directory for the first time.
func (s *Server) openDirectory() (errs []error) {
	s.dir = &directory{path: s.cfg.Directory}
	_, err := s.dir.reload(time.Now())
	switch {
	case s.dir.entries == nil && err != nil: // it cannot be listed
		return []error{err}
	case len(s.cfg.Certificates)+len(s.dir.pairs) == 0:
		return append([]error{&FileError{s.cfg.Directory, errors.New("no certificate with its key")}, err}, s.dir.warnings...)
	}
	return nil
}

// DirectoryError says what in the directory could not be used when it was last read; nil when
// all was well.
func (s *Server) DirectoryError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return nil
	}
	return s.dir.lastErr
}

// Config is the configuration for a connection that begins now. All
// connections of a generation share it.
func (s *Server) Config() *tls.Config { return s.current.Load() }

// Certificates lists what is being served.
func (s *Server) Certificates() []Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return describeCertificates(s.pairs())
}

func describeCertificates(pairs []*keyPair) []Certificate {
	list := make([]Certificate, len(pairs))
	for i, p := range pairs {
		list[i] = Certificate{File: p.files.Cert, NotAfter: p.cert.Leaf.NotAfter}
	}
	return list
}

// Files gives the files that Reload reads, and the directories whose entries matter.
func (s *Server) Files() (files []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.cfg.Certificates {
		files = append(files, p.Cert, p.Key)
	}
	if s.cfg.ClientCA != "" {
		files = append(files, s.cfg.ClientCA)
	}
	if s.dir != nil {
		files = append(append(files, s.dir.path), s.dir.entries...)
	}
	return files
}

// pairs is everything that is served, the default first. A certificate that is
// configured by itself is not there again out of the directory.
func (s *Server) pairs() []*keyPair {
	all := slices.Clone(s.configured)
	if s.dir == nil {
		return all
	}
	for _, p := range s.dir.pairs {
		if !slices.ContainsFunc(s.configured, p.hasSameLeaf) {
			all = append(all, p)
		}
	}
	return all
}

// Reload reads the files again. What cannot be used is named in the error and
// the last good version of it stays in service; the rest is taken over. It
// reports whether a new generation was made.
func (s *Server) Reload() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i, old := range s.configured {
		p, err := old.reload()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if p.checksum != old.checksum {
			s.configured[i], changed = p, true
		}
	}
	cas, err := loadCAs(s.cfg.ClientCA)
	if err != nil {
		errs = append(errs, err)
	} else if cas.checksum != s.cas.checksum {
		s.cas, changed = cas, true
	}
	if s.dir != nil {
		s.dir.canBeEmpty = len(s.configured) > 0
		dirChanged, err := s.dir.reload(time.Now())
		changed = changed || dirChanged
		errs = append(errs, err)
		s.dir.logWarnings(s.log)
	}
	if changed {
		s.rebuildConfig()
	}
	s.expiry.warnExpiring(s.log, s.pairs(), time.Now())
	return changed, errors.Join(errs...)
}

// checkReplacement refuses a new certificate that nobody would accept in place of one
// that is still good. One expired certificate may replace another.
func checkReplacement(old, p *keyPair) error {
	now := time.Now()
	if p.checksum == old.checksum || p.isValid(now) || !old.isValid(now) {
		return nil
	}
	return fmt.Errorf("certificate %s is valid only from %s to %s", p.files.Cert,
		p.cert.Leaf.NotBefore.UTC().Format(time.RFC3339), p.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
}

// rebuildConfig makes the next generation from what was loaded; mu is held. A new
// tls.Config has new ticket keys, so a session that was accepted under other
// client CAs cannot be resumed into this generation.
func (s *Server) rebuildConfig() {
	names := newNameTable(s.pairs())
	cfg := &tls.Config{
		MinVersion:     s.minVersion,
		GetCertificate: names.getCertificate,
		// Asked in every handshake, also in one that resumes and serves nothing: the
		// session is of this generation, because the ticket keys are.
		GetConfigForClient: names.recordServed,
		NextProtos:         []string{IMAP},
		// Small first records help web pages, not mail: bulk goes out in full ones.
		DynamicRecordSizingDisabled: true,
	}
	if s.cas.pool != nil {
		cfg.ClientCAs = s.cas.pool
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	s.current.Store(cfg)
}

func loadCAs(name string) (caPool, error) {
	if name == "" {
		return caPool{}, nil
	}
	pool, sum, err := readCAFile(name)
	if err != nil {
		return caPool{}, err
	}
	return caPool{pool: pool, checksum: sum}, nil
}
