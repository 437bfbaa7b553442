package tlsconf

import (
	"context"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/filewatch"
	"imapgate/internal/testkit"
)

// watchFiles watches the files of s until the test ends.
func watchFiles(t *testing.T, s filewatch.Source, log *zap.Logger) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	set := filewatch.NewReloader(log)
	set.Add("tls", s)
	var running sync.WaitGroup
	running.Go(func() {
		if err := set.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
}

// servedName returns the common name of the default certificate.
func servedName(t *testing.T, s *Server) string {
	t.Helper()
	cert, err := s.Config().GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.Subject.CommonName
}

func hasLogged(logs *observer.ObservedLogs, message string) bool {
	return logs.FilterMessage(message).Len() > 0
}

const (
	msgBad  = "files are not usable, the last good ones stay in service"
	msgGood = "files are good again"
)

func TestNewFilesAreServedWithoutRestart(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	base := filepath.Join(dir, "c")
	cert, key := ca.issue(t, later, "one")
	pair := writePair(t, base, cert, key)
	s, logs := newServer(t, ServerSettings{Certificates: []CertFiles{pair}})
	first := s.Config()
	watchFiles(t, s, s.log)

	cert, key = ca.issue(t, later, "two")
	writePair(t, base, cert, key)
	testkit.Eventually(t, "written in place", func() bool { return servedName(t, s) == "two" })
	if s.Config() == first {
		t.Error("the first generation was changed")
	}

	cert, key = ca.issue(t, later, "three")
	fresh := writePair(t, filepath.Join(dir, "new"), cert, key)
	if err := os.Rename(fresh.Cert, pair.Cert); err != nil { // for a moment the pair does not match
		t.Fatal(err)
	}
	testkit.Eventually(t, "the mismatch is reported", func() bool { return hasLogged(logs, msgBad) })
	if got := servedName(t, s); got != "two" {
		t.Errorf("a mismatched pair is served: %s", got)
	}
	if err := os.Rename(fresh.Key, pair.Key); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "renamed over", func() bool { return servedName(t, s) == "three" })
	testkit.Eventually(t, "the recovery is reported", func() bool { return hasLogged(logs, msgGood) })
}

func TestSymlinkSwapOfMountedSecretIsReloaded(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	version := func(name string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		cert, key := ca.issue(t, later, name)
		writePair(t, filepath.Join(dir, name, "tls"), cert, key)
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("v1")
	pair := CertFiles{Cert: filepath.Join(dir, "tls.pem"), Key: filepath.Join(dir, "tls.key")}
	for _, link := range []string{pair.Cert, pair.Key} {
		if err := os.Symlink(filepath.Join("..data", filepath.Base(link)), link); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := newServer(t, ServerSettings{Certificates: []CertFiles{pair}})
	watchFiles(t, s, s.log)
	version("v2")
	testkit.Eventually(t, "v2", func() bool { return servedName(t, s) == "v2" })
	if err := os.RemoveAll(filepath.Join(dir, "v1")); err != nil {
		t.Fatal(err)
	}
	version("v3")
	testkit.Eventually(t, "v3", func() bool { return servedName(t, s) == "v3" })
}

func TestBadNewFileKeepsTheOldOneAndIsReportedOnce(t *testing.T) {
	ca, dir, later := newAuthority(t, "ca"), t.TempDir(), time.Now().Add(240*time.Hour)
	oneCert, oneKey := ca.issue(t, later, "one")
	twoCert, twoKey := ca.issue(t, later, "two")
	one := writePair(t, filepath.Join(dir, "one"), oneCert, oneKey)
	two := writePair(t, filepath.Join(dir, "two"), twoCert, twoKey)
	s, logs := newServer(t, ServerSettings{Certificates: []CertFiles{one, two}})
	expired, expiredKey := ca.issue(t, time.Now().Add(-time.Hour), "expired")
	for name, breakIt := range map[string]func(){
		"garbage": func() { write(t, one.Cert, []byte("garbage")) },
		"empty":   func() { write(t, one.Cert, nil) },
		"missing": func() { _ = os.Remove(one.Cert) },
		"expired": func() { write(t, one.Cert, expired); write(t, one.Key, expiredKey) },
	} {
		breakIt()
		renewed, renewedKey := ca.issue(t, later, "two")
		write(t, two.Cert, renewed)
		write(t, two.Key, renewedKey)
		changed, err := s.Reload()
		if err == nil || !strings.Contains(err.Error(), one.Cert) {
			t.Errorf("%s: %v", name, err)
		}
		if !changed || servedName(t, s) != "one" {
			t.Errorf("%s: the other pair was not reloaded, or the bad one was", name)
		}
		write(t, one.Cert, oneCert)
		write(t, one.Key, oneKey)
		if _, err := s.Reload(); err != nil {
			t.Errorf("%s, repaired: %v", name, err)
		}
	}
	write(t, one.Cert, nil)
	set := filewatch.NewReloader(s.log)
	set.Add("tls", s)
	for range 2 {
		if _, err := set.Reload(); err == nil {
			t.Error("an empty certificate is accepted")
		}
	}
	if logs.FilterMessage(msgBad).Len() != 1 {
		t.Error("the same error is not logged exactly once")
	}
}

func TestSessionOfARemovedClientCAIsNotResumed(t *testing.T) {
	ca, clients, others, dir := newAuthority(t, "ca"), newAuthority(t, "clients"), newAuthority(t, "others"), t.TempDir()
	later := time.Now().Add(240 * time.Hour)
	cert, key := ca.issue(t, later, "mail")
	caFile := write(t, filepath.Join(dir, "ca"), clients.pem())
	s, _ := newServer(t, ServerSettings{Certificates: []CertFiles{writePair(t, filepath.Join(dir, "c"), cert, key)}, ClientCA: caFile})
	cert, key = clients.issue(t, later, "alice")
	own, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	client := &tls.Config{ServerName: "mail", RootCAs: ca.pool(), Certificates: []tls.Certificate{own},
		ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	for i, want := range []bool{false, true} {
		state, err := runHandshake(t, s.Config(), client)
		if err != nil || state.DidResume != want {
			t.Fatalf("connection %d: resumed %v, %v", i, state.DidResume, err)
		}
	}
	write(t, caFile, others.pem())
	if changed, err := s.Reload(); !changed || err != nil {
		t.Fatal(changed, err)
	}
	state, err := runHandshake(t, s.Config(), client)
	if state.DidResume {
		t.Error("a session of the removed CA was resumed")
	}
	// The client may see the server's new CA list and offer no certificate;
	// with the old one it must be refused.
	if err == nil && len(state.PeerCertificates) == 0 {
		t.Error("no handshake took place")
	}
	forced := client.Clone()
	forced.ClientSessionCache = nil
	forced.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	if _, err := runHandshake(t, s.Config(), forced); err == nil {
		t.Error("a certificate of the removed CA is accepted")
	}
	anonymous := &tls.Config{ServerName: "mail", RootCAs: ca.pool()}
	if _, err := runHandshake(t, s.Config(), anonymous); err != nil {
		t.Errorf("a client without a certificate: %v", err)
	}
}

func TestExpiryIsLoggedOncePerThreshold(t *testing.T) {
	ca, now := newAuthority(t, "ca"), time.Now()
	end := now.Add(30 * 24 * time.Hour).Truncate(time.Second)
	cert, key := ca.issue(t, end, "mail")
	base := filepath.Join(t.TempDir(), "c")
	pair := writePair(t, base, cert, key)
	s, logs := newServer(t, ServerSettings{Certificates: []CertFiles{pair}})
	if list := s.Certificates(); len(list) != 1 || list[0].File != pair.Cert || !list[0].NotAfter.Equal(end) {
		t.Errorf("%+v", list)
	}
	day := 24 * time.Hour
	total := 0
	for _, c := range []struct {
		left time.Duration
		more int
	}{{30 * day, 0}, {22 * day, 0}, {21 * day, 1}, {20 * day, 0}, {7*day + time.Hour, 0}, {6 * day, 1}, {day, 1}, {time.Hour, 0}, {-time.Hour, 1}, {-30 * day, 0}} {
		total += c.more
		s.expiry.warnExpiring(s.log, s.pairs(), end.Add(-c.left))
		if logs.Len() != total {
			t.Errorf("%v before the end: %d lines, want %d", c.left, logs.Len(), total)
		}
	}
	if !hasLogged(logs, "certificate has expired") || servedName(t, s) != "mail" {
		t.Error("an expired certificate must be reported and stay in service")
	}
	cert, key = ca.issue(t, end.Add(day), "mail") // renewed: thresholds start again
	writePair(t, base, cert, key)
	if changed, err := s.Reload(); !changed || err != nil {
		t.Fatal(err)
	}
	s.expiry.warnExpiring(s.log, s.pairs(), end.Add(-12*time.Hour))
	if logs.Len() != total+1 {
		t.Error("the expiry of the renewed certificate is not logged")
	}
}

func TestExpiredCertificateMayBeReplacedByAnyOther(t *testing.T) {
	ca, base := newAuthority(t, "ca"), filepath.Join(t.TempDir(), "c")
	cert, key := ca.issue(t, time.Now().Add(-2*time.Hour), "one")
	s, _ := newServer(t, ServerSettings{Certificates: []CertFiles{writePair(t, base, cert, key)}})
	cert, key = ca.issue(t, time.Now().Add(-time.Hour), "two")
	writePair(t, base, cert, key)
	if changed, err := s.Reload(); !changed || err != nil || servedName(t, s) != "two" {
		t.Error(changed, err)
	}
}
