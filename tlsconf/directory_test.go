package tlsconf

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"imapgate/internal/testkit"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// servedNames returns the common names of the pairs in service, the default first.
func servedNames(s *Server) (list []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pairs() {
		list = append(list, p.cert.Leaf.Subject.CommonName)
	}
	return list
}

func servedChainLength(t *testing.T, s *Server, name string) int {
	t.Helper()
	cert, err := s.Config().GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	return len(cert.Certificate)
}

func mkdir(t testing.TB, parts ...string) string {
	t.Helper()
	dir := filepath.Join(parts...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func link(t testing.TB, target, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// certbotDir is a directory in certbot's layout.
type certbotDir struct {
	root    string
	ca      *authority
	version string // the last one
}

// renew writes the next version into archive and points the links in live to it, in certbot's
// order. It changes at most the given number of links.
func (c *certbotDir) renew(t testing.TB, version, commonName string, links int) {
	t.Helper()
	c.version = version
	cert, key := c.ca.issue(t, time.Now().Add(240*time.Hour), commonName, "mail.example.org")
	archive, live := mkdir(t, c.root, "archive", "mail.example.org"), mkdir(t, c.root, "live", "mail.example.org")
	write(t, filepath.Join(c.root, "live", "README"), []byte("This directory contains your keys and certificates."))
	write(t, filepath.Join(live, "README"), []byte("This directory contains your keys and certificates."))
	for name, text := range map[string][]byte{"cert": cert, "privkey": key, "chain": c.ca.pem(), "fullchain": slices.Concat(cert, c.ca.pem())} {
		write(t, filepath.Join(archive, name+version+".pem"), text)
	}
	c.updateLinks(t, links)
}

func (c *certbotDir) updateLinks(t testing.TB, links int) {
	t.Helper()
	for _, name := range []string{"cert", "privkey", "chain", "fullchain"}[:links] {
		link(t, "../../archive/mail.example.org/"+name+c.version+".pem", filepath.Join(c.root, "live", "mail.example.org", name+".pem"))
	}
}

func TestCertbotRenewalIsReloaded(t *testing.T) {
	c := &certbotDir{root: t.TempDir(), ca: newAuthority(t, "ca")}
	c.renew(t, "1", "one", 4)
	s, _ := newServer(t, ServerSettings{CertificateDir: filepath.Join(c.root, "live")})
	if got := servedNames(s); !slices.Equal(got, []string{"one"}) || servedChainLength(t, s, "mail.example.org") != 2 {
		t.Fatalf("served: %v, a chain of %d", got, servedChainLength(t, s, "mail.example.org"))
	}
	if _, err := s.Reload(); err != nil {
		t.Errorf("a complete directory: %v", err)
	}
	for links := 1; links < 4; links++ { // at each step of certbot
		c.renew(t, "2", "two", links)
		_, _ = s.Reload()
		if got := servedNames(s); !slices.Equal(got, []string{"one"}) || servedChainLength(t, s, "mail.example.org") != 2 {
			t.Errorf("after %d links: %v, a chain of %d", links, got, servedChainLength(t, s, "mail.example.org"))
		}
		c.renew(t, "1", "one", 4)
		if _, err := s.Reload(); err != nil {
			t.Error(err)
		}
	}
	watchFiles(t, s, s.log)
	c.renew(t, "3", "three", 4)
	testkit.Eventually(t, "the renewal", func() bool {
		return slices.Equal(servedNames(s), []string{"three"}) && servedChainLength(t, s, "") == 2
	})

	other := &certbotDir{root: t.TempDir(), ca: c.ca}
	other.renew(t, "1", "four", 4)
	if err := os.Rename(filepath.Join(other.root, "live", "mail.example.org"), filepath.Join(other.root, "live", "new")); err != nil {
		t.Fatal(err)
	}
	link(t, filepath.Join(other.root, "live", "new"), filepath.Join(c.root, "live", "new.example.org"))
	link(t, filepath.Join(other.root, "live", "new"), filepath.Join(other.root, "live", "mail.example.org"))
	testkit.Eventually(t, "another folder", func() bool { // the newest first, unless they are of the same second
		return slices.Equal(slices.Sorted(slices.Values(servedNames(s))), []string{"four", "three"})
	})
	if err := os.Remove(filepath.Join(c.root, "live", "new.example.org")); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "its removal", func() bool { return slices.Equal(servedNames(s), []string{"three"}) })
}

func TestAnyMixOfFilesIsMatchedByPublicKey(t *testing.T) {
	ca, root, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	own, ownKey := ca.issue(t, later, "own")
	a, aKey := ca.issue(t, later, "a")
	b, bKey := ca.issue(t, later, "b")
	c, cKey := ca.issue(t, later, "c")
	old, oldKey := ca.issue(t, time.Now().Add(-time.Hour), "expired")
	params := pem.EncodeToMemory(&pem.Block{Type: "DH PARAMETERS", Bytes: []byte{1}})
	dir := mkdir(t, root, "certs")
	write(t, filepath.Join(dir, "a.pem"), slices.Concat(params, aKey, a, ca.pem()))                  // HAProxy: the key first
	write(t, filepath.Join(dir, "a-leaf.crt"), a)                                                    // a shorter chain for the same
	write(t, filepath.Join(dir, "b.cer"), b)                                                         // in two files of other names
	write(t, filepath.Join(dir, "0.key"), bKey)                                                      //
	write(t, filepath.Join(mkdir(t, dir, "c.example.org"), "backwards.PEM"), append(ca.pem(), c...)) // the leaf last
	write(t, filepath.Join(dir, "c.example.org", "privkey.pem"), cKey)
	write(t, filepath.Join(dir, "0.pem"), slices.Concat(old, oldKey)) // first by name, but expired
	write(t, filepath.Join(dir, "ca.pem"), ca.pem())
	write(t, filepath.Join(dir, "dhparam.pem"), params)
	write(t, filepath.Join(dir, "own.pem"), slices.Concat(own, ownKey)) // also configured
	write(t, filepath.Join(dir, "README"), []byte("no PEM"))
	write(t, filepath.Join(dir, "a.pem~"), []byte("garbage"))
	write(t, filepath.Join(mkdir(t, dir, "..2026"), "x.pem"), []byte("garbage"))
	write(t, filepath.Join(mkdir(t, dir, "c.example.org", "deeper"), "x.pem"), []byte("garbage"))
	s, _ := newServer(t, ServerSettings{Certificates: []CertFiles{writePair(t, filepath.Join(root, "own"), own, ownKey)}, CertificateDir: dir})
	if got := servedNames(s); !slices.Equal(got, []string{"own", "a", "b", "c", "expired"}) {
		t.Errorf("served: %v", got)
	}
	for name, want := range map[string]int{"a": 2, "b": 1, "c": 2} {
		state, err := runHandshake(t, s.Config(), &tls.Config{RootCAs: ca.pool(), ServerName: name})
		if err != nil || state.PeerCertificates[0].Subject.CommonName != name || len(state.PeerCertificates) != want {
			t.Errorf("%s: %v, a chain of %d", name, err, len(state.PeerCertificates))
		}
	}
	if changed, err := s.Reload(); changed || err != nil {
		t.Errorf("unchanged files: %v, %v", changed, err)
	}
	if list := s.Certificates(); len(list) != 5 || list[1].File != filepath.Join(dir, "a.pem") {
		t.Errorf("%+v", list)
	}
}

func TestACAWhoseKeyIsInTheDirectoryIsNotServed(t *testing.T) {
	ca, later := newAuthority(t, "MyCA"), time.Now().Add(240*time.Hour)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	caKey := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	cert, key := ca.issue(t, later, "mail.example.org")
	dir := t.TempDir()
	writePair(t, filepath.Join(dir, "mail"), slices.Concat(cert, ca.pem()), key)
	theCA := writePair(t, filepath.Join(dir, "ca"), ca.pem(), caKey)
	s, logged := newServer(t, ServerSettings{CertificateDir: dir})
	if got := servedNames(s); !slices.Equal(got, []string{"mail.example.org"}) || servedChainLength(t, s, "") != 2 {
		t.Errorf("served: %v, a chain of %d", got, servedChainLength(t, s, ""))
	}
	want := theCA.Key + ": it has the key of the CA \"CN=MyCA\", which names no server"
	if err := s.Diagnose(time.Now()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "not in the file") {
		t.Errorf("Diagnose: %v", err)
	}
	for range 2 {
		if changed, err := s.Reload(); changed || err != nil || s.DirectoryError() != nil {
			t.Errorf("%v, %v, %v", changed, err, s.DirectoryError())
		}
	}
	if n := logged.FilterMessage("a key should not be among the certificates").Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "mail.pem")), os.Remove(filepath.Join(dir, "mail.key"))); err != nil {
		t.Fatal(err)
	}
	if _, err := NewServer(ServerSettings{CertificateDir: dir}, s.log); err == nil || !strings.Contains(err.Error(), "no certificate with its key") || !strings.Contains(err.Error(), want) {
		t.Errorf("alone: %v", err)
	}
}

func TestASelfSignedCertificateIsServedUntilItHasSignedAnother(t *testing.T) {
	cert, key, err := SelfSignedPEM("alone.example.org")
	if err != nil {
		t.Fatal(err)
	}
	both, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writePair(t, filepath.Join(dir, "alone"), cert, key)
	s, _ := newServer(t, ServerSettings{CertificateDir: dir})
	if got := servedNames(s); !slices.Equal(got, []string{"alone.example.org"}) || s.Diagnose(time.Now()) != nil {
		t.Errorf("served: %v, %v", got, s.Diagnose(time.Now()))
	}
	ca := &authority{both.Leaf, both.PrivateKey.(*ecdsa.PrivateKey)}
	leaf, leafKey := ca.issue(t, time.Now().Add(240*time.Hour), "mail.example.org")
	writePair(t, filepath.Join(dir, "mail"), leaf, leafKey)
	if _, err := s.Reload(); err != nil {
		t.Error(err)
	}
	err = s.Diagnose(time.Now())
	if got := servedNames(s); !slices.Equal(got, []string{"mail.example.org"}) || err == nil || !strings.Contains(err.Error(), "which has signed a certificate in "+filepath.Join(dir, "mail.pem")) {
		t.Errorf("served: %v, %v", got, err)
	}
	write(t, filepath.Join(dir, "mail.pem"), leaf[:len(leaf)/2])
	if changed, err := s.Reload(); changed || err == nil || !slices.Equal(servedNames(s), []string{"mail.example.org"}) {
		t.Errorf("during the write: %v, %v, served %v", changed, err, servedNames(s))
	}
}

func TestOfCertificatesForOneNameTheNewestIsServed(t *testing.T) {
	ca, dir, day := newAuthority(t, "ca"), t.TempDir(), 24*time.Hour
	put := func(file string, begins time.Duration, names ...string) {
		t.Helper()
		cert, key := ca.issueFrom(t, time.Now().Add(begins), time.Now().Add(10*day), names...)
		write(t, filepath.Join(dir, file), slices.Concat(cert, key))
	}
	put("2025.pem", -9*day, "old", "mail.example.org")
	put("2026.pem", -2*day, "new", "mail.example.org", "imap.example.org")
	put("2026a.pem", -3*day, "older", "imap.example.org")
	put("2027.pem", day, "to come", "mail.example.org")
	put("another.pem", -day, "another")
	s, _ := newServer(t, ServerSettings{CertificateDir: dir})
	// A later renewal of another certificate does not make that one the default.
	if got := servedNames(s); !slices.Equal(got, []string{"new", "older", "old", "another", "to come"}) {
		t.Errorf("served: %v", got)
	}
	for _, name := range []string{"mail.example.org", "imap.example.org", ""} {
		cert, err := s.Config().GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil || cert.Leaf.Subject.CommonName != "new" {
			t.Errorf("%q: %v, %v", name, cert.Leaf.Subject, err)
		}
	}
}

func TestDirectoryProblemsNameFiles(t *testing.T) {
	ca, later := newAuthority(t, "ca"), time.Now().Add(240*time.Hour)
	good, goodKey := ca.issue(t, later, "good")
	lone, loneKey := ca.issue(t, later, "lone")
	block, _ := pem.Decode(loneKey)
	for name, c := range map[string]struct {
		file string
		text []byte
		want string
	}{
		"leaf without key":        {"lone.pem", lone, "lone.pem: no key for the certificate in it"},
		"key without certificate": {"lone.key", loneKey, "lone.key: no certificate for the key in it"},
		"encrypted":               {"x.key", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}}), "x.key: the key is encrypted"},
		"encrypted, as of old": {"x.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte{1},
			Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}}), "x.key: the key is encrypted"},
		"garbage":          {"x.pem", []byte("garbage"), "x.pem: there is no PEM in it"},
		"broken key":       {"x.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes[:20]}), "x.pem: the key in it cannot be read"},
		"broken":           {"x.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}}), "x.pem: a certificate in it cannot be read"},
		"OpenSSH":          {"x.key", pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: []byte{1}}), "x.key: it holds a key in OpenSSH's format, which TLS cannot use"},
		"DER":              {"x.crt", ca.cert.Raw, "x.crt: it is DER; PEM is needed: openssl x509 -inform DER -in "},
		"too large":        {"x.pem", make([]byte, maxFileSize+1), "x.pem: it is larger"},
		"leads to nothing": {"x.pem", nil, "x.pem: no such file"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "good.pem"), slices.Concat(good, goodKey))
		if c.text == nil {
			link(t, "/no/where", filepath.Join(dir, c.file))
		} else {
			write(t, filepath.Join(dir, c.file), c.text)
		}
		s, _ := newServer(t, ServerSettings{CertificateDir: dir})
		if _, err := s.Reload(); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, c.want)) || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: %v", name, err)
		}
		if got := servedNames(s); !slices.Equal(got, []string{"good"}) {
			t.Errorf("%s: served %v", name, got)
		}
		if err := os.Remove(filepath.Join(dir, "good.pem")); err != nil {
			t.Fatal(err)
		}
		if _, err := NewServer(ServerSettings{CertificateDir: dir}, s.log); err == nil || !strings.Contains(err.Error(), "no certificate with its key") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, alone: %v", name, err)
		}
	}
	if _, err := NewServer(ServerSettings{CertificateDir: "/no/where"}, nil); err == nil || !strings.Contains(err.Error(), "/no/where: no such file") {
		t.Errorf("no directory: %v", err)
	}
}

func TestUnreadableKeyIsNamed(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may read every file")
	}
	cert, key := newAuthority(t, "ca").issue(t, time.Now().Add(time.Hour), "a")
	dir := t.TempDir()
	files := writePair(t, filepath.Join(dir, "a"), cert, key)
	if err := os.Chmod(files.Key, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := NewServer(ServerSettings{CertificateDir: dir}, nil); err == nil || !strings.Contains(err.Error(), files.Key+": permission denied") {
		t.Error(err)
	}
}

func TestHalfWrittenPairsKeepTheLastGoodOne(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	one, oneKey := ca.issue(t, later, "one")
	two, twoKey := ca.issue(t, later, "two")
	expired, expiredKey := ca.issue(t, time.Now().Add(-time.Hour), "expired")
	cert, key := filepath.Join(dir, "mail.pem"), filepath.Join(dir, "mail.key")
	whole := func() {
		write(t, cert, append(slices.Clone(one), ca.pem()...))
		write(t, key, oneKey)
	}
	whole()
	s, _ := newServer(t, ServerSettings{CertificateDir: dir})
	for name, half := range map[string]func(){
		"new certificate, old key": func() { write(t, cert, two) },
		"old certificate, new key": func() { write(t, key, twoKey) },
		"half a certificate":       func() { write(t, cert, two[:len(two)/2]) },
		"empty certificate":        func() { write(t, cert, nil) },
		"no certificate":           func() { _ = os.Remove(cert) },
		"no key":                   func() { _ = os.Remove(key) },
		"nothing":                  func() { _, _ = os.Remove(cert), os.Remove(key) },
		"new, but expired":         func() { write(t, cert, expired); write(t, key, expiredKey) },
		"leaf beside a new chain": func() {
			write(t, filepath.Join(dir, "leaf.pem"), one)
			write(t, cert, two)
		},
	} {
		half()
		if changed, err := s.Reload(); changed || err == nil {
			t.Errorf("%s: %v, %v", name, changed, err)
		}
		if got := servedNames(s); !slices.Equal(got, []string{"one"}) || servedChainLength(t, s, "one") != 2 {
			t.Errorf("%s: served %v", name, got)
		}
		_ = os.Remove(filepath.Join(dir, "leaf.pem"))
		whole()
		if changed, err := s.Reload(); changed || err != nil {
			t.Errorf("%s, repaired: %v, %v", name, changed, err)
		}
	}
	write(t, cert, two)
	write(t, key, twoKey)
	if changed, err := s.Reload(); !changed || err != nil || servedNames(s)[0] != "two" {
		t.Errorf("renewed: %v, %v, %v", changed, err, servedNames(s))
	}
}

func TestDirectoryKeyPairsAreAddedAndRemoved(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	cert, key := ca.issue(t, later, "a")
	write(t, filepath.Join(dir, "a.pem"), slices.Concat(cert, key))
	s, _ := newServer(t, ServerSettings{CertificateDir: dir})
	watchFiles(t, s, s.log)
	served := func(want ...string) {
		t.Helper()
		testkit.Eventually(t, strings.Join(want, ", "), func() bool { return slices.Equal(servedNames(s), want) })
	}
	cert, key = ca.issue(t, later, "b")
	write(t, filepath.Join(dir, "b.pem"), slices.Concat(cert, key))
	served("a", "b")
	cert, key = ca.issue(t, later, "c")
	sub := mkdir(t, dir, "c")
	served("a", "b")
	write(t, filepath.Join(sub, "tls.crt"), cert)
	write(t, filepath.Join(sub, "tls.key"), key)
	served("a", "b", "c")
	cert, key = ca.issue(t, later, "a2")
	fresh := write(t, filepath.Join(dir, ".a.tmp"), slices.Concat(cert, key))
	if err := os.Rename(fresh, filepath.Join(dir, "a.pem")); err != nil {
		t.Fatal(err)
	}
	served("a2", "b", "c")
	if err := os.Remove(filepath.Join(dir, "b.pem")); err != nil {
		t.Fatal(err)
	}
	served("a2", "c")
	if err := os.RemoveAll(sub); err != nil {
		t.Fatal(err)
	}
	served("a2")
	if _, err := x509.ParseCertificate(s.pairs()[0].cert.Certificate[0]); err != nil {
		t.Error(err)
	}
}
