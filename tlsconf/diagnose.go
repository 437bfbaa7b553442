package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"imapgate/internal/plainfile"
)

// FileError is a problem with one file. It quotes nothing of a key.
type FileError struct {
	File string
	Err  error
}

func (e *FileError) Error() string { return e.File + ": " + e.Err.Error() }
func (e *FileError) Unwrap() error { return e.Err }

func newFileError(name string, err error) error {
	return &FileError{name, plainfile.WithoutPath(err)}
}

// parseKeyPair parses a certificate and its key. Its errors explain common mistakes with files.
func parseKeyPair(files CertFiles, cert, key []byte) (*tls.Certificate, error) {
	if problem := describeCertificateFile(files.Cert, cert); problem != "" {
		return nil, &FileError{files.Cert, errors.New(problem)}
	}
	if problem := describeKeyFile(files.Key, key); problem != "" {
		return nil, &FileError{files.Key, errors.New(problem)}
	}
	pair, err := tls.X509KeyPair(cert, key)
	switch {
	case err == nil:
		return &pair, nil
	case !strings.Contains(err.Error(), "does not match"):
		return nil, &FileError{files.Cert, fmt.Errorf("with key %s: %w", files.Key, err)}
	case matchesLaterCertificate(cert, key):
		return nil, &FileError{files.Cert, fmt.Errorf("the certificate of key %s is not the first: put it before its intermediates", files.Key)}
	}
	return nil, &FileError{files.Key, fmt.Errorf("this key does not match the certificate in %s", files.Cert)}
}

// decodePEM returns the PEM blocks of a text.
func decodePEM(text []byte) (list []*pem.Block) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return list
		}
		list = append(list, b)
	}
}

func isKey(b *pem.Block) bool {
	return b.Type == "PRIVATE KEY" || strings.HasSuffix(b.Type, " PRIVATE KEY")
}

func isCertificate(b *pem.Block) bool { return b.Type == "CERTIFICATE" }

// describeKeyBlock returns why the key in a block cannot be used, or "".
func describeKeyBlock(name string, b *pem.Block) string {
	switch {
	case b.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED"): // PKCS #8, and the older format
		return "the key is encrypted, and imapgate cannot ask for its password: openssl pkey -in " + name + " -out NEW decrypts it"
	case b.Type == "OPENSSH PRIVATE KEY":
		return "it holds a key in OpenSSH's format, which TLS cannot use"
	}
	return ""
}

// describeNotPEM returns what is wrong with a file without PEM: that it is DER, or else
// fallback.
func describeNotPEM(name string, text []byte, fallback string) string {
	if _, err := x509.ParseCertificate(text); err == nil {
		return "it is DER; PEM is needed: openssl x509 -inform DER -in " + name + " -out NEW"
	}
	return fallback
}

// describeCertificateFile returns why a file has no certificate, or "".
func describeCertificateFile(name string, text []byte) string {
	blocks := decodePEM(text)
	if slices.ContainsFunc(blocks, isCertificate) {
		return ""
	}
	if slices.ContainsFunc(blocks, isKey) {
		return "it holds a key and no certificate: are cert and key swapped?"
	}
	return describeNotPEM(name, text, "it holds no PEM certificate (-----BEGIN CERTIFICATE-----)")
}

// describeKeyFile returns why a file has no usable key, or "".
func describeKeyFile(name string, text []byte) string {
	blocks := decodePEM(text)
	if i := slices.IndexFunc(blocks, isKey); i >= 0 {
		return describeKeyBlock(name, blocks[i])
	}
	if slices.ContainsFunc(blocks, isCertificate) {
		return "it holds a certificate and no key: are cert and key swapped?"
	}
	return "it holds no PEM key (-----BEGIN PRIVATE KEY-----)"
}

// matchesLaterCertificate reports whether the key belongs to a certificate other than the
// first.
func matchesLaterCertificate(cert, key []byte) bool {
	for i, b := range decodePEM(cert) {
		if i == 0 || !isCertificate(b) {
			continue
		}
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(b), key); err == nil {
			return true
		}
	}
	return false
}

// Diagnose returns problems with files that can be served: certificates that clients will
// refuse, client CAs that are all expired, and CA keys in the directory. The error joins
// FileErrors; it is nil if there are no problems.
func (s *Server) Diagnose(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var problems []error
	for _, p := range s.pairs() {
		if problem := describeValidity(p.cert.Leaf, now); problem != "" {
			problems = append(problems, &FileError{p.files.Cert, errors.New(problem + ": clients refuse it")})
		}
		if problem := describeChain(p.cert, now); problem != "" {
			problems = append(problems, &FileError{p.files.Cert, errors.New(problem)})
		}
	}
	if s.dir != nil {
		problems = append(problems, s.dir.warnings...)
	}
	return errors.Join(append(problems, diagnoseCAs(s.cfg.ClientCA, now))...)
}

// Diagnose reports that the client certificate, or every CA for servers, is expired or not yet
// valid. The error joins FileErrors; it is nil if there are no problems.
func (c *Client) Diagnose(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []error
	for _, p := range c.configured {
		if problem := describeValidity(p.cert.Leaf, now); problem != "" {
			problems = append(problems, &FileError{p.files.Cert, errors.New(problem + ": servers refuse it")})
		}
	}
	return errors.Join(append(problems, diagnoseCAs(c.cfg.CA, now))...)
}

// diagnoseCAs reports that all CAs of a file are expired or not yet valid. It ignores a file
// that cannot be read, which Reload reports.
func diagnoseCAs(name string, now time.Time) error {
	if name == "" {
		return nil
	}
	text, err := readFile(name)
	if err != nil {
		return nil
	}
	problem := ""
	for _, b := range decodePEM(text) {
		c, err := x509.ParseCertificate(b.Bytes)
		if !isCertificate(b) || err != nil {
			continue
		}
		if problem = describeValidity(c, now); problem == "" {
			return nil
		}
	}
	if problem == "" {
		return nil
	}
	return &FileError{name, errors.New(problem)}
}

// describeValidity returns that a certificate is expired or not yet valid, or "".
func describeValidity(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "the certificate expired at " + c.NotAfter.UTC().Format(time.RFC3339)
	case now.Before(c.NotBefore):
		return "the certificate is not valid before " + c.NotBefore.UTC().Format(time.RFC3339) + ", and this machine's clock is at " + now.UTC().Format(time.RFC3339)
	}
	return ""
}

// describeChain returns that a certificate does not lead to a CA of this system, or "". A
// self-issued certificate is accepted, and so is a self-issued CA in the file. A system without
// CAs offers nothing to compare with.
func describeChain(cert *tls.Certificate, now time.Time) string {
	roots, err := x509.SystemCertPool()
	if err != nil || roots.Equal(x509.NewCertPool()) || isSelfIssued(cert.Leaf) {
		return ""
	}
	last, intermediates := cert.Leaf, x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return "a certificate after the first cannot be parsed: " + err.Error()
		}
		intermediates.AddCert(c)
		if isSelfIssued(c) {
			roots.AddCert(c)
		}
		if bytes.Equal(c.RawSubject, last.RawIssuer) {
			last = c
		}
	}
	expired := describeValidity(cert.Leaf, now) != "" // Diagnose reports it separately
	if expired {
		now = cert.Leaf.NotAfter
	}
	_, err = cert.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	var invalid x509.CertificateInvalidError
	switch unknown := new(x509.UnknownAuthorityError); {
	case err == nil, expired && errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return ""
	case errors.As(err, unknown):
		return fmt.Sprintf("the chain ends with %q, which is not in the file and no CA that this system trusts: clients that do not trust that CA refuse it. "+
			"Append the intermediate certificates that came with it, or a CA of your own", last.Issuer.String())
	}
	return "the chain is invalid: " + err.Error()
}

func isSelfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }
