package tlsconf

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// pemScan is the content of the files of a directory.
type pemScan struct {
	previous []*keyPair // last good pairs, whose files may be incomplete now
	chains   []pemChain
	keys     map[string]pemKey // by public key
	problems []error
	unusable map[string]bool // files and subdirectories with a problem
	warnings []error         // problems that do not affect what is served
}

type pemChain struct {
	file  string
	certs []*x509.Certificate
}

type pemKey struct {
	file   string
	key    crypto.Signer
	isUsed bool
}

// scanFiles reads the files among entries.
func scanFiles(entries []string) *pemScan {
	s := &pemScan{keys: make(map[string]pemKey), unusable: make(map[string]bool)}
	for _, name := range entries {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			if _, err := os.ReadDir(name); err != nil {
				s.addProblem(name, newFileError(name, err))
			}
			continue
		}
		text, err := readFile(name)
		if err != nil {
			s.addProblem(name, err)
			continue
		}
		if err := s.parseFile(name, text); err != nil {
			s.addProblem(name, &FileError{name, err})
		}
	}
	return s
}

func (s *pemScan) addProblem(name string, err error) {
	s.unusable[name] = true
	s.problems = append(s.problems, err)
}

// parseFile parses the certificates and keys of one file, in any order. It skips other blocks,
// such as parameters and requests.
func (s *pemScan) parseFile(name string, text []byte) error {
	chain := pemChain{file: name}
	list := decodePEM(text)
	if len(list) == 0 {
		return errors.New(describeNotPEM(name, text, "there is no PEM in it"))
	}
	for _, block := range list {
		switch {
		case block.Type == "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return fmt.Errorf("a certificate in it cannot be read: %w", err)
			}
			chain.certs = append(chain.certs, cert)
		case isKey(block):
			if problem := describeKeyBlock(name, block); problem != "" {
				return errors.New(problem)
			}
			key, public, err := parseKey(block.Bytes)
			if err != nil {
				return err
			}
			if _, duplicate := s.keys[public]; !duplicate { // the first file by name
				s.keys[public] = pemKey{file: name, key: key}
			}
		}
	}
	if len(chain.certs) > 0 {
		s.chains = append(s.chains, chain)
	}
	return nil
}

// parseKey parses a key in any of the forms that tls.X509KeyPair supports. public is its public
// key, encoded as by encodePublicKey.
func parseKey(der []byte) (key crypto.Signer, public string, err error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	if err != nil {
		parsed, err = x509.ParseECPrivateKey(der)
	}
	key, ok := parsed.(crypto.Signer)
	if err != nil || !ok { // the library's text may quote the key
		return nil, "", errors.New("the key in it cannot be read")
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, "", errors.New("the key in it is of an unknown type")
	}
	return key, string(spki), nil
}

func encodePublicKey(cert *x509.Certificate) string {
	spki, _ := x509.MarshalPKIXPublicKey(cert.PublicKey) // of an unknown type: no key has it
	return string(spki)
}

// matchKeys returns the pairs of certificates and keys. Of several chains for a certificate it
// uses the longest. It ignores a file without a pair whose first certificate is a CA: it has
// intermediates.
func (s *pemScan) matchKeys() (found []*keyPair) {
	byLeaf := make(map[string]int) // leaf → index in found
	for _, chain := range s.chains {
		matched := s.matchChain(chain)
		if len(matched) == 0 && !chain.certs[0].IsCA {
			s.addProblem(chain.file, &FileError{chain.file, errors.New("no key for the certificate in it")})
		}
		for _, p := range matched {
			i, duplicate := byLeaf[p.leafDER()]
			switch {
			case !duplicate:
				byLeaf[p.leafDER()] = len(found)
				found = append(found, p)
			case len(p.cert.Certificate) > len(found[i].cert.Certificate):
				found[i] = p
			}
		}
	}
	for _, key := range s.keys {
		if !key.isUsed {
			s.addProblem(key.file, &FileError{key.file, errors.New("no certificate for the key in it")})
		}
	}
	for _, list := range [][]error{s.problems, s.warnings} {
		slices.SortFunc(list, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	}
	return found
}

// matchChain returns a pair for each certificate of a file that has a key and is for servers.
// All CAs of the file are its intermediates, even those with a key.
func (s *pemScan) matchChain(chain pemChain) (matched []*keyPair) {
	var leaves []*x509.Certificate
	var cas [][]byte
	for _, cert := range chain.certs {
		key, ok := s.keys[encodePublicKey(cert)]
		reason := ""
		if ok {
			reason = s.unservableCA(cert)
		}
		switch {
		case ok && reason == "":
			leaves = append(leaves, cert)
		case cert.IsCA:
			cas = append(cas, cert.Raw)
		}
		if !ok {
			continue
		}
		if reason != "" && !key.isUsed { // warn once
			s.warnings = append(s.warnings, &FileError{key.file, fmt.Errorf("it has the key of the CA %q, %s: it is not served, and its key is safer elsewhere", cert.Subject, reason)})
		}
		key.isUsed = true
		s.keys[encodePublicKey(cert)] = key
	}
	for _, leaf := range leaves {
		key := s.keys[encodePublicKey(leaf)]
		cert := tls.Certificate{Certificate: append([][]byte{leaf.Raw}, cas...), PrivateKey: key.key, Leaf: leaf}
		matched = append(matched, newKeyPair(cert, CertFiles{Cert: chain.file, Key: key.file}))
	}
	return matched
}

// unservableCA returns why a CA does not identify a server, or "". A CA that names a server and
// has signed no other certificate is a self-signed certificate as openssl makes them.
func (s *pemScan) unservableCA(ca *x509.Certificate) (reason string) {
	if !ca.IsCA {
		return ""
	}
	if len(ca.DNSNames)+len(ca.IPAddresses) == 0 {
		return "which names no server (subjectAltName)"
	}
	isSigned := func(cert *x509.Certificate) bool {
		return bytes.Equal(cert.RawIssuer, ca.RawSubject) && encodePublicKey(cert) != encodePublicKey(ca) && cert.CheckSignatureFrom(ca) == nil
	}
	for _, chain := range s.chains {
		if slices.ContainsFunc(chain.certs, isSigned) {
			return "which has signed a certificate in " + chain.file
		}
	}
	for _, p := range s.previous {
		if isSigned(p.cert.Leaf) {
			return "which has signed a certificate in " + p.files.Cert
		}
	}
	return ""
}
