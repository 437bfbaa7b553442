package tlsconf

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"imapgate/internal/plainfile"

	"go.uber.org/zap"
)

// maxFileSize bounds a certificate, key or CA file in bytes. A system bundle of roots has about
// 220 KB.
const maxFileSize = 4 << 20

// checksum identifies the content of files, so that an event without a change makes no new
// generation.
type checksum [sha256.Size]byte

// keyPair is the last good version of a certificate and its key.
type keyPair struct {
	files    CertFiles
	cert     *tls.Certificate
	checksum checksum
}

// caPool is the last good version of a file of CAs; pool is nil if no file is configured.
type caPool struct {
	pool     *x509.CertPool
	checksum checksum
}

// loadedFiles holds the last good versions of the configured files of one side. Its owner
// guards it.
type loadedFiles struct {
	configured []*keyPair // in the operator's order
	caFile     string     // "": none
	cas        caPool
	expiry     expiryWarner
}

// loadFiles reads all files. The error names each unusable file.
func loadFiles(certificates []CertFiles, caFile string) (loadedFiles, error) {
	l := loadedFiles{caFile: caFile, expiry: make(expiryWarner)}
	var errs []error
	for _, files := range certificates {
		p, err := loadKeyPair(files)
		l.configured, errs = append(l.configured, p), append(errs, err)
	}
	var err error
	l.cas, err = loadCAs(caFile)
	return l, errors.Join(append(errs, err)...)
}

// reload reads the files again. The error names each unusable file, whose last good version
// stays in service; all others take effect.
func (l *loadedFiles) reload() (changed bool, err error) {
	var errs []error
	for i, old := range l.configured {
		p, err := loadKeyPair(old.files)
		if err == nil {
			err = checkReplacement(old, p)
		}
		if err == nil && p.checksum != old.checksum {
			l.configured[i], changed = p, true
		}
		errs = append(errs, err)
	}
	cas, err := loadCAs(l.caFile)
	if err == nil && cas.checksum != l.cas.checksum {
		l.cas, changed = cas, true
	}
	return changed, errors.Join(append(errs, err)...)
}

// names returns the names of the files.
func (l *loadedFiles) names() (files []string) {
	for _, p := range l.configured {
		files = append(files, p.files.Cert, p.files.Key)
	}
	if l.caFile != "" {
		files = append(files, l.caFile)
	}
	return files
}

// loadKeyPair reads a certificate and its key. Its errors name the files and quote none of
// their content.
func loadKeyPair(files CertFiles) (*keyPair, error) {
	cert, err := readFile(files.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readFile(files.Key)
	if err != nil {
		return nil, err
	}
	parsed, err := parseKeyPair(files, cert, key)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	h.Write(cert)
	h.Write([]byte{0})
	h.Write(key)
	return &keyPair{files: files, cert: parsed, checksum: checksum(h.Sum(nil))}, nil
}

// newKeyPair returns the pair of a certificate and its key.
func newKeyPair(cert tls.Certificate, files CertFiles) *keyPair {
	h := sha256.New()
	for _, der := range cert.Certificate {
		h.Write(der)
	}
	return &keyPair{files: files, cert: &cert, checksum: checksum(h.Sum(nil))}
}

// checkReplacement refuses an expired or not yet valid certificate in place of a valid one. One
// expired certificate may replace another.
func checkReplacement(old, p *keyPair) error {
	now := time.Now()
	if p.checksum == old.checksum || p.isValid(now) || !old.isValid(now) {
		return nil
	}
	return fmt.Errorf("certificate %s is valid only from %s to %s", p.files.Cert,
		p.cert.Leaf.NotBefore.UTC().Format(time.RFC3339), p.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
}

// isValid reports whether p is valid at the given time.
func (p *keyPair) isValid(now time.Time) bool {
	return !now.Before(p.cert.Leaf.NotBefore) && !now.After(p.cert.Leaf.NotAfter)
}

// leafDER returns the encoded leaf, which identifies the certificate.
func (p *keyPair) leafDER() string { return string(p.cert.Certificate[0]) }

// hasSameLeaf reports whether both have the same leaf.
func (p *keyPair) hasSameLeaf(other *keyPair) bool { return p.leafDER() == other.leafDER() }

// loadCAs reads a PEM file of CA certificates. Without a name there is no pool.
func loadCAs(name string) (caPool, error) {
	if name == "" {
		return caPool{}, nil
	}
	text, err := readFile(name)
	if err != nil {
		return caPool{}, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return caPool{}, &FileError{name, errors.New("it holds no PEM certificate (-----BEGIN CERTIFICATE-----)")}
	}
	return caPool{pool: pool, checksum: sha256.Sum256(text)}, nil
}

// readFile reads a PEM file of at most maxFileSize bytes and removes its byte order marks.
// Windows programs write one at the beginning of every file, so a joined file has several. The
// error is a *FileError.
func readFile(name string) ([]byte, error) {
	f, _, err := plainfile.Open(name)
	if err != nil {
		return nil, newFileError(name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(text) > maxFileSize {
		err = fmt.Errorf("it is larger than %d bytes", maxFileSize)
	}
	if err == nil {
		text, err = plainfile.DecodeText(text)
	}
	if err != nil {
		return nil, newFileError(name, err)
	}
	return bytes.ReplaceAll(text, []byte("\xef\xbb\xbf"), nil), nil
}

// expiryThresholds are the times left before a certificate expires at which a warning is
// logged, each once.
var expiryThresholds = [...]time.Duration{21 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// expiryWarner maps the checksum of a pair to the number of warnings logged. The owner guards
// it.
type expiryWarner map[checksum]int

// warnExpiring logs once at each of expiryThresholds. An expired certificate stays in service:
// some clients may accept it, and without one no client could connect.
func (e expiryWarner) warnExpiring(log *zap.Logger, pairs []*keyPair, now time.Time) {
	for sum := range e {
		if !slices.ContainsFunc(pairs, func(p *keyPair) bool { return p.checksum == sum }) { // replaced: its successor starts at zero
			delete(e, sum)
		}
	}
	for _, p := range pairs {
		left := p.cert.Leaf.NotAfter.Sub(now)
		level := 0 // number of warnings due
		for level < len(expiryThresholds) && left <= expiryThresholds[level] {
			level++
		}
		if level <= e[p.checksum] {
			continue
		}
		e[p.checksum] = level
		fields := []zap.Field{zap.String("file", p.files.Cert), zap.Time("not_after", p.cert.Leaf.NotAfter.UTC())}
		if left <= 0 {
			log.Error("certificate has expired", fields...)
		} else {
			log.Warn("certificate expires soon", append(fields, zap.Duration("left", left.Round(time.Hour)))...)
		}
	}
}
