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

// maxFile bounds a certificate, key or CA file: a system bundle of roots is
// about 220 KB.
const maxFile = 4 << 20

// digest identifies what files held, so that an event that changed nothing
// makes no new generation.
type digest [sha256.Size]byte

// pair is a certificate with its key as they were last good.
type pair struct {
	files KeyPair
	cert  *tls.Certificate
	sum   digest
}

// trust is a pool of CAs as it was last good; pool is nil where no file is configured.
type trust struct {
	pool *x509.CertPool
	sum  digest
}

// loadPair reads a certificate and its key. Its errors name the files, never
// what is in them.
func loadPair(files KeyPair) (*pair, error) {
	cert, err := readFile(files.Cert)
	if err != nil {
		return nil, err
	}
	key, err := readFile(files.Key)
	if err != nil {
		return nil, err
	}
	both, err := parsePair(files, cert, key)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	h.Write(cert)
	h.Write([]byte{0})
	h.Write(key)
	return &pair{files: files, cert: both, sum: digest(h.Sum(nil))}, nil
}

// reload reads p's files again.
func (p *pair) reload() (*pair, error) {
	again, err := loadPair(p.files)
	if err != nil {
		return nil, err
	}
	return again, worse(p, again)
}

// leaf identifies the certificate that p is for.
func (p *pair) leaf() string { return string(p.cert.Certificate[0]) }

// sameLeaf reports whether both are for one certificate.
func (p *pair) sameLeaf(other *pair) bool { return p.leaf() == other.leaf() }

// loadPool reads a PEM file of CA certificates.
func loadPool(name string) (*x509.CertPool, digest, error) {
	text, err := readFile(name)
	if err != nil {
		return nil, digest{}, err
	}
	if text, err = pemText(name, text); err != nil {
		return nil, digest{}, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, digest{}, &FileError{name, errors.New("it holds no PEM certificate (-----BEGIN CERTIFICATE-----)")}
	}
	return pool, sha256.Sum256(text), nil
}

// readFile is os.ReadFile with a bound, of regular files. The error is a *FileError.
func readFile(name string) ([]byte, error) {
	f, _, err := plainfile.Open(name)
	if err != nil {
		return nil, fileError(name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fileError(name, err)
	}
	if len(text) > maxFile {
		return nil, &FileError{name, fmt.Errorf("it is larger than %d bytes", maxFile)}
	}
	return text, nil
}

// valid says whether p may be served at the given time.
func (p *pair) valid(now time.Time) bool {
	return !now.Before(p.cert.Leaf.NotBefore) && !now.After(p.cert.Leaf.NotAfter)
}
