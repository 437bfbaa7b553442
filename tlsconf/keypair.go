package tlsconf

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"imapgate/internal/plainfile"
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

// reload reads p's files again.
func (p *keyPair) reload() (*keyPair, error) {
	reloaded, err := loadKeyPair(p.files)
	if err != nil {
		return nil, err
	}
	return reloaded, checkReplacement(p, reloaded)
}

// leafDER returns the encoded leaf, which identifies the certificate.
func (p *keyPair) leafDER() string { return string(p.cert.Certificate[0]) }

// hasSameLeaf reports whether both have the same leaf.
func (p *keyPair) hasSameLeaf(other *keyPair) bool { return p.leafDER() == other.leafDER() }

// readCAFile reads a PEM file of CA certificates.
func readCAFile(name string) (*x509.CertPool, checksum, error) {
	text, err := readFile(name)
	if err != nil {
		return nil, checksum{}, err
	}
	if text, err = stripByteOrderMarks(name, text); err != nil {
		return nil, checksum{}, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, checksum{}, &FileError{name, errors.New("it holds no PEM certificate (-----BEGIN CERTIFICATE-----)")}
	}
	return pool, sha256.Sum256(text), nil
}

// readFile reads a regular file of at most maxFileSize bytes. The error is a *FileError.
func readFile(name string) ([]byte, error) {
	f, _, err := plainfile.Open(name)
	if err != nil {
		return nil, newFileError(name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, newFileError(name, err)
	}
	if len(text) > maxFileSize {
		return nil, &FileError{name, fmt.Errorf("it is larger than %d bytes", maxFileSize)}
	}
	return text, nil
}

// isValid reports whether p is valid at the given time.
func (p *keyPair) isValid(now time.Time) bool {
	return !now.Before(p.cert.Leaf.NotBefore) && !now.After(p.cert.Leaf.NotAfter)
}
