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

// Server is the listeners' side of TLS.
type Server struct {
	// Set once.
	cfg        ServerSettings
	minVersion uint16
	log        *zap.Logger

	current atomic.Pointer[tls.Config]

	mu sync.Mutex
	// Guarded by mu.
	loadedFiles
	dir *directory // nil without one
}

// Certificate describes a certificate in service.
type Certificate struct {
	File     string
	NotAfter time.Time
}

// NewServer loads all files and returns all errors at once, each with the file and the reason.
// Other problems in a directory with a usable pair are not errors; DirectoryError returns them.
func NewServer(cfg ServerSettings, log *zap.Logger) (*Server, error) {
	minVersion, err := parseVersion(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	if len(cfg.Certificates) == 0 && cfg.CertificateDir == "" {
		return nil, errors.New("no certificate is configured")
	}
	s := &Server{cfg: cfg, minVersion: minVersion, log: log}
	s.loadedFiles, err = loadFiles(cfg.Certificates, cfg.ClientCA)
	errs := []error{err}
	if cfg.CertificateDir != "" {
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
	s.dir = &directory{path: s.cfg.CertificateDir}
	_, err := s.dir.reload(time.Now())
	switch {
	case s.dir.entries == nil && err != nil: // the directory cannot be listed
		return []error{err}
	case len(s.cfg.Certificates)+len(s.dir.pairs) == 0:
		return append([]error{&FileError{s.cfg.CertificateDir, errors.New("no certificate with its key")}, err}, s.dir.warnings...)
	}
	return nil
}

// DirectoryError returns the error of the last reload of the directory; nil if there was none.
func (s *Server) DirectoryError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dir == nil {
		return nil
	}
	return s.dir.lastErr
}

// Config returns the configuration for a new connection. All connections of a generation share
// it.
func (s *Server) Config() *tls.Config { return s.current.Load() }

// Certificates returns the certificates in service.
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

// Files returns the files that Reload reads, and the directories whose entries matter.
func (s *Server) Files() (files []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files = s.names()
	if s.dir != nil {
		files = append(append(files, s.dir.path), s.dir.entries...)
	}
	return files
}

// pairs returns all pairs in service, the default first. A configured certificate that is also
// in the directory is returned once.
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

// Reload reads the files again. The error names each unusable file, whose last good version
// stays in service; all others take effect. It reports whether a new generation was made.
func (s *Server) Reload() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed, err = s.reload()
	if s.dir != nil {
		s.dir.canBeEmpty = len(s.configured) > 0
		dirChanged, dirErr := s.dir.reload(time.Now())
		changed, err = changed || dirChanged, errors.Join(err, dirErr)
		s.dir.logWarnings(s.log)
	}
	if changed {
		s.rebuildConfig()
	}
	s.expiry.warnExpiring(s.log, s.pairs(), time.Now())
	return changed, err
}

// rebuildConfig makes the next generation from the loaded files; the caller holds mu. A new
// tls.Config has new ticket keys, so a session accepted under other client CAs cannot be
// resumed in this generation.
func (s *Server) rebuildConfig() {
	names := newNameTable(s.pairs())
	cfg := &tls.Config{
		MinVersion:     s.minVersion,
		GetCertificate: names.getCertificate,
		// Called in every handshake, also in a resumed one that sends no certificate. The
		// ticket keys ensure that the resumed session is of this generation.
		GetConfigForClient: names.recordServed,
		NextProtos:         []string{IMAP},
		// Small first records help web pages, not mail: bulk data is sent in full records.
		DynamicRecordSizingDisabled: true,
	}
	if s.cas.pool != nil {
		cfg.ClientCAs = s.cas.pool
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	s.current.Store(cfg)
}
