package tlsconf

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// scan is what the files of a directory hold.
type scan struct {
	chains   []pemChain
	keys     map[string]pemKey // by public key
	problems []error
	bad      map[string]bool // files and folders that have a problem
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
				s.add(name, err)
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
	some := false
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		some = true
		switch {
		case block.Type == "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return fmt.Errorf("a certificate in it cannot be read: %w", err)
			}
			chain.certs = append(chain.certs, cert)
		case isKey(block) && isEncrypted(block):
			return errors.New(encrypted(name))
		case isKey(block):
			key, public, err := parseKey(block.Bytes)
			if err != nil {
				return err
			}
			if _, twice := s.keys[public]; !twice { // the first by name
				s.keys[public] = pemKey{file: name, key: key}
			}
		}
	}
	if !some {
		return errors.New("there is no PEM in it")
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
// longest is taken. A file whose certificates are all without keys, and CAs, is one of
// intermediates, and ignored.
func (s *scan) pairs() (found []*pair) {
	at := make(map[string]int) // leaf → its place in found
	for _, chain := range s.chains {
		own := s.paired(chain)
		if len(own) == 0 && !chain.certs[0].IsCA {
			s.add(chain.file, fmt.Errorf("%s: no key for the certificate in it", chain.file))
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
			s.add(key.file, fmt.Errorf("%s: no certificate for the key in it", key.file))
		}
	}
	slices.SortFunc(s.problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return found
}

// paired makes a pair of each certificate of a file that has a key. The others are its
// intermediates.
func (s *scan) paired(chain pemChain) (own []*pair) {
	var rest [][]byte
	for _, cert := range chain.certs {
		if _, ok := s.keys[publicOf(cert)]; !ok {
			rest = append(rest, cert.Raw)
		}
	}
	for _, leaf := range chain.certs {
		key, ok := s.keys[publicOf(leaf)]
		if !ok {
			continue
		}
		key.used = true
		s.keys[publicOf(leaf)] = key
		cert := tls.Certificate{Certificate: append([][]byte{leaf.Raw}, rest...), PrivateKey: key.key, Leaf: leaf}
		own = append(own, makePair(cert, KeyPair{Cert: chain.file, Key: key.file}))
	}
	return own
}
