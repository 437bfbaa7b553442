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

// scan is what the files of a directory hold.
type scan struct {
	old      []*pair // as last good, of which a file may be half written now
	chains   []pemChain
	keys     map[string]pemKey // by public key
	problems []error
	bad      map[string]bool // files and folders that have a problem
	advice   []error         // on what keeps nothing from being served
}

type pemChain struct {
	file  string
	certs []*x509.Certificate
}

type pemKey struct {
	file string
	key  crypto.Signer
	used bool
}

// readPEM reads the files among entries.
func readPEM(entries []string) *scan {
	s := &scan{keys: make(map[string]pemKey), bad: make(map[string]bool)}
	for _, name := range entries {
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			if _, err := os.ReadDir(name); err != nil {
				s.add(name, fileError(name, err))
			}
			continue
		}
		text, err := readFile(name)
		if err == nil {
			text, err = pemText(name, text)
		}
		if err != nil {
			s.add(name, err)
			continue
		}
		if err := s.read(name, text); err != nil {
			s.add(name, &FileError{name, err})
		}
	}
	return s
}

func (s *scan) add(name string, err error) {
	s.bad[name] = true
	s.problems = append(s.problems, err)
}

// read takes the certificates and keys of one file, whatever their order. Other blocks,
// such as parameters and requests, are passed over.
func (s *scan) read(name string, text []byte) error {
	chain := pemChain{file: name}
	list := blocks(text)
	if len(list) == 0 {
		return errors.New(notPEM(name, text, "there is no PEM in it"))
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
			if wrong := wrongKeyBlock(name, block); wrong != "" {
				return errors.New(wrong)
			}
			key, public, err := parseKey(block.Bytes)
			if err != nil {
				return err
			}
			if _, twice := s.keys[public]; !twice { // the first by name
				s.keys[public] = pemKey{file: name, key: key}
			}
		}
	}
	if len(chain.certs) > 0 {
		s.chains = append(s.chains, chain)
	}
	return nil
}

// parseKey reads a key in any of the forms that tls.X509KeyPair does. public is its
// public key, as publicOf gives that of a certificate.
func parseKey(der []byte) (key crypto.Signer, public string, err error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	if err != nil {
		parsed, err = x509.ParseECPrivateKey(der)
	}
	key, ok := parsed.(crypto.Signer)
	if err != nil || !ok { // the library's words may tell of what is in the key
		return nil, "", errors.New("the key in it cannot be read")
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, "", errors.New("the key in it is of an unknown kind")
	}
	return key, string(spki), nil
}

func publicOf(cert *x509.Certificate) string {
	spki, _ := x509.MarshalPKIXPublicKey(cert.PublicKey) // of an unknown kind: no key has it
	return string(spki)
}

// pairs matches the certificates to the keys. Of several chains for a certificate the
// longest is taken. A file of which nothing is served, and whose first is a CA, is one
// of intermediates, and ignored.
func (s *scan) pairs() (found []*pair) {
	at := make(map[string]int) // leaf → its place in found
	for _, chain := range s.chains {
		own := s.paired(chain)
		if len(own) == 0 && !chain.certs[0].IsCA {
			s.add(chain.file, &FileError{chain.file, errors.New("no key for the certificate in it")})
		}
		for _, p := range own {
			i, twice := at[p.leaf()]
			switch {
			case !twice:
				at[p.leaf()] = len(found)
				found = append(found, p)
			case len(p.cert.Certificate) > len(found[i].cert.Certificate):
				found[i] = p
			}
		}
	}
	for _, key := range s.keys {
		if !key.used {
			s.add(key.file, &FileError{key.file, errors.New("no certificate for the key in it")})
		}
	}
	for _, list := range [][]error{s.problems, s.advice} {
		slices.SortFunc(list, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	}
	return found
}

// paired makes a pair of each certificate of a file that has a key and is for servers.
// The CAs in the file are its intermediates, whether their keys are there or not.
func (s *scan) paired(chain pemChain) (own []*pair) {
	var leaves []*x509.Certificate
	var rest [][]byte
	for _, cert := range chain.certs {
		key, ok := s.keys[publicOf(cert)]
		why := ""
		if ok {
			why = s.authority(cert)
		}
		switch {
		case ok && why == "":
			leaves = append(leaves, cert)
		case cert.IsCA:
			rest = append(rest, cert.Raw)
		}
		if !ok {
			continue
		}
		if why != "" && !key.used { // told once
			s.advice = append(s.advice, &FileError{key.file, fmt.Errorf("it has the key of the CA %q, %s: a CA that is not served, whose key is safer elsewhere", cert.Subject, why)})
		}
		key.used = true
		s.keys[publicOf(cert)] = key
	}
	for _, leaf := range leaves {
		key := s.keys[publicOf(leaf)]
		cert := tls.Certificate{Certificate: append([][]byte{leaf.Raw}, rest...), PrivateKey: key.key, Leaf: leaf}
		own = append(own, makePair(cert, KeyPair{Cert: chain.file, Key: key.file}))
	}
	return own
}

// authority says why a CA is none that identifies a server, or "". One that is nobody
// else's CA, and names a server, is a self-signed certificate as openssl makes them.
func (s *scan) authority(ca *x509.Certificate) (why string) {
	if !ca.IsCA {
		return ""
	}
	if len(ca.DNSNames)+len(ca.IPAddresses) == 0 {
		return "which names no server (subjectAltName)"
	}
	signed := func(cert *x509.Certificate) bool {
		return bytes.Equal(cert.RawIssuer, ca.RawSubject) && publicOf(cert) != publicOf(ca) && cert.CheckSignatureFrom(ca) == nil
	}
	for _, chain := range s.chains {
		if slices.ContainsFunc(chain.certs, signed) {
			return "which has signed a certificate in " + chain.file
		}
	}
	for _, p := range s.old {
		if signed(p.cert.Leaf) {
			return "which has signed a certificate in " + p.files.Cert
		}
	}
	return ""
}
