package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"imapgate/internal/plainfile"
)

// FileError is what is wrong with one file. It says nothing of a key's contents.
type FileError struct {
	File string
	Err  error
}

func (e *FileError) Error() string { return e.File + ": " + e.Err.Error() }
func (e *FileError) Unwrap() error { return e.Err }

func newFileError(name string, err error) error {
	return &FileError{name, plainfile.WithoutPath(err)}
}

// stripByteOrderMarks is the text of a PEM file without byte order marks, which Windows programs
// put at the beginning of every file, also of those that are joined into one.
func stripByteOrderMarks(name string, text []byte) ([]byte, error) {
	text, err := plainfile.DecodeText(text)
	if err != nil {
		return nil, &FileError{name, err}
	}
	return bytes.ReplaceAll(text, []byte("\xef\xbb\xbf"), nil), nil
}

// parseKeyPair joins a certificate and its key, and says in words why they are none.
func parseKeyPair(files CertFiles, cert, key []byte) (*tls.Certificate, error) {
	cert, err := stripByteOrderMarks(files.Cert, cert)
	if err != nil {
		return nil, err
	}
	if key, err = stripByteOrderMarks(files.Key, key); err != nil {
		return nil, err
	}
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
	return nil, &FileError{files.Key, fmt.Errorf("this key does not match the certificate in %s: it is another one's", files.Cert)}
}

// decodePEM gives the PEM blocks of a text.
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

func isEncrypted(b *pem.Block) bool {
	return b.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") // PKCS #8, and before it
}

// describeKeyBlock is why the key in a block cannot be used, or "".
func describeKeyBlock(name string, b *pem.Block) string {
	switch {
	case isEncrypted(b):
		return "the key is encrypted, and nobody is there to type its password: openssl pkey -in " + name + " -out NEW decrypts it"
	case b.Type == "OPENSSH PRIVATE KEY":
		return "it holds a key of OpenSSH, which is none for TLS"
	}
	return ""
}

// describeNotPEM is what is wrong with a file that has nothing in PEM: that it is DER, or otherwise.
func describeNotPEM(name string, text []byte, fallback string) string {
	if _, err := x509.ParseCertificate(text); err == nil {
		return "it is DER; PEM is needed: openssl x509 -inform DER -in " + name + " -out NEW"
	}
	return fallback
}

// describeCertificateFile is why a file has no certificate, or "".
func describeCertificateFile(name string, text []byte) string {
	keys := false
	for _, b := range decodePEM(text) {
		if b.Type == "CERTIFICATE" {
			return ""
		}
		keys = keys || isKey(b)
	}
	if keys {
		return "it holds a key and no certificate: are cert and key swapped?"
	}
	return describeNotPEM(name, text, "it holds no PEM certificate (-----BEGIN CERTIFICATE-----)")
}

// describeKeyFile is why a file has no key that can be used, or "".
func describeKeyFile(name string, text []byte) string {
	certificates := false
	for _, b := range decodePEM(text) {
		if isKey(b) {
			return describeKeyBlock(name, b)
		}
		certificates = certificates || b.Type == "CERTIFICATE"
	}
	if certificates {
		return "it holds a certificate and no key: are cert and key swapped?"
	}
	return "it holds no PEM key (-----BEGIN PRIVATE KEY-----)"
}

// matchesLaterCertificate says whether the key is that of a certificate that is not the first.
func matchesLaterCertificate(cert, key []byte) bool {
	for i, b := range decodePEM(cert) {
		if i == 0 || b.Type != "CERTIFICATE" {
			continue
		}
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(b), key); err == nil {
			return true
		}
	}
	return false
}

// diagnoseCertificate says what clients will have against a served certificate, which can be served
// all the same: that it has ended or not begun, and that its chain leads nowhere.
func diagnoseCertificate(cert *tls.Certificate, now time.Time) (problems []string) {
	if problem := describeValidity(cert.Leaf, now); problem != "" {
		problems = append(problems, problem+": clients refuse it")
	}
	if problem := describeChain(cert, now); problem != "" {
		problems = append(problems, problem)
	}
	return problems
}

// Diagnose says what clients will have against what is served, that no CA of clients is
// in time, and whose keys should not be in the directory. It is made of FileErrors; nil
// when all is well.
func (s *Server) Diagnose(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var problems []error
	for _, p := range s.pairs() {
		for _, problem := range diagnoseCertificate(p.cert, now) {
			problems = append(problems, &FileError{p.files.Cert, errors.New(problem)})
		}
	}
	if s.dir != nil {
		problems = append(problems, s.dir.warnings...)
	}
	return errors.Join(append(problems, diagnoseCAs(s.cfg.ClientCA, now))...)
}

// Diagnose says that what servers are shown, or every CA that they are verified with, is
// out of time. It is made of FileErrors; nil when all is well.
func (c *Client) Diagnose(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var problems []error
	for _, p := range c.pairs() {
		if problem := describeValidity(p.cert.Leaf, now); problem != "" {
			problems = append(problems, &FileError{p.files.Cert, errors.New(problem + ": servers refuse it")})
		}
	}
	return errors.Join(append(problems, diagnoseCAs(c.cfg.CA, now))...)
}

// diagnoseCAs says that all CAs of a file are out of time. That it cannot be read is
// another's to say.
func diagnoseCAs(name string, now time.Time) error {
	if name == "" {
		return nil
	}
	text, err := readFile(name)
	if err == nil {
		text, err = stripByteOrderMarks(name, text)
	}
	if err != nil {
		return nil
	}
	problem := ""
	for _, b := range decodePEM(text) {
		c, err := x509.ParseCertificate(b.Bytes)
		if b.Type != "CERTIFICATE" || err != nil {
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

// describeValidity says that a certificate has ended or not begun, or "".
func describeValidity(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "the certificate expired at " + c.NotAfter.UTC().Format(time.RFC3339)
	case now.Before(c.NotBefore):
		return "the certificate is not valid before " + c.NotBefore.UTC().Format(time.RFC3339) + ", and this machine's clock says " + now.UTC().Format(time.RFC3339)
	}
	return ""
}

// describeChain says that a certificate does not lead to a CA that this system knows, or
// "". One that is its own CA is meant so, and so is a CA of one's own at the file's
// end. On a system that knows no CA there is nothing to compare with.
func describeChain(cert *tls.Certificate, now time.Time) string {
	roots, err := x509.SystemCertPool()
	if err != nil || roots.Equal(x509.NewCertPool()) || isSelfIssued(cert.Leaf) {
		return ""
	}
	last, intermediates := cert.Leaf, x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return "a certificate behind the first is none: " + err.Error()
		}
		intermediates.AddCert(c)
		if isSelfIssued(c) {
			roots.AddCert(c)
		}
		if bytes.Equal(c.RawSubject, last.RawIssuer) {
			last = c
		}
	}
	expired := describeValidity(cert.Leaf, now) != "" // which is another doubt
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
		return fmt.Sprintf("the chain ends with %q, which is not in the file and no CA that this system trusts: clients refuse it who do not know that CA. "+
			"Append the intermediate certificates that came with it, or a CA of your own", last.Issuer.String())
	}
	return "the chain is not good: " + err.Error()
}

func isSelfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }
