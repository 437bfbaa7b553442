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
	MinVersion   string    // "1.2" (also "") or "1.3"
	Certificates []KeyPair // chosen by SNI; the first is the default
	Directory    string    // whose pairs come behind Certificates; "" is none
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
	own    []*pair    // of Certificates, as last good, in their order
	dir    *directory // nil without one
	trust  trust      // as last good
	warned expiry
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
	min, err := version(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	if len(cfg.Certificates) == 0 && cfg.Directory == "" {
		return nil, errors.New("no certificate is configured")
	}
	s := &Server{cfg: cfg, version: min, log: log, warned: make(expiry)}
	var errs []error
	for _, files := range cfg.Certificates {
		p, err := loadPair(files)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.own = append(s.own, p)
	}
	if s.trust, err = loadTrust(cfg.ClientCA); err != nil {
		errs = append(errs, err)
	}
	if cfg.Directory != "" {
		errs = append(errs, s.openDirectory()...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.publish()
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
		return append([]error{&FileError{s.cfg.Directory, errors.New("no certificate with its key")}, err}, s.dir.advice...)
	}
	return nil
}

// Unused says what in the directory could not be used when it was last read; nil when
// all was well.
func (s *Server) Unused() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return nil
	}
	return s.dir.problem
}

// Config is the configuration for a connection that begins now. All
// connections of a generation share it.
func (s *Server) Config() *tls.Config { return s.current.Load() }

// Certificates lists what is being served.
func (s *Server) Certificates() []Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return listed(s.pairs())
}

func listed(pairs []*pair) []Certificate {
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
func (s *Server) pairs() []*pair {
	all := slices.Clone(s.own)
	if s.dir == nil {
		return all
	}
	for _, p := range s.dir.pairs {
		if !slices.ContainsFunc(s.own, p.sameLeaf) {
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
	for i, old := range s.own {
		p, err := old.reload()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if p.sum != old.sum {
			s.own[i], changed = p, true
		}
	}
	trust, err := loadTrust(s.cfg.ClientCA)
	if err != nil {
		errs = append(errs, err)
	} else if trust.sum != s.trust.sum {
		s.trust, changed = trust, true
	}
	if s.dir != nil {
		s.dir.mayEmpty = len(s.own) > 0
		renewed, err := s.dir.reload(time.Now())
		changed = changed || renewed
		errs = append(errs, err)
		s.dir.advise(s.log)
	}
	if changed {
		s.publish()
	}
	s.warned.warn(s.log, s.pairs(), time.Now())
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
	names := newNameTable(s.pairs())
	cfg := &tls.Config{
		MinVersion:     s.version,
		GetCertificate: names.certificate,
		// Asked in every handshake, also in one that resumes and serves nothing: the
		// session is of this generation, because the ticket keys are.
		GetConfigForClient: names.note,
		NextProtos:         []string{IMAP},
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
		return trust{}, err
	}
	return trust{pool: pool, sum: sum}, nil
}
