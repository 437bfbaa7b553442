package tests

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/descriptors"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
)

const (
	descriptorLimit = 300
	idleUserCount   = 60
)

// descriptorTest is a gateway in mode resume with few descriptors, its sessions, and a
// Dovecot behind a fault proxy.
type descriptorTest struct {
	*testing.T
	b          *gatewayProcess
	faultProxy *faultproxy.Proxy

	mu       sync.Mutex
	sessions []*RawClient // Guarded by mu.
}

// Sixty users open two sessions each, as far as descriptors allow. Before that each leaves
// an idle upstream in the pool, and the gateway has used aux connections. Then all
// upstreams end at once, while new clients keep connecting.
func TestDescriptorShortageRefusesNewClientsAndKeepsSessions(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	s := &descriptorTest{T: t, faultProxy: faultproxy.Start(t, backend.Plain)}
	limit := []string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, descriptorLimit)}
	s.b = startProcessUnder(t, limit, backend.CA, fmt.Sprintf(`backends:
  east: {address: %q, tls: none, mode: resume, mux: {credential_cache: true, pool_idle_timeout: 30m, command_hold_timeout: 4m}}
routing: {source: static, static: {default: east}}`, s.faultProxy.Address()))
	slots := int(descriptors.MaxClients(descriptorLimit))

	s.forEachUser(idleUserCount, func(user string) error { // leaves an idle upstream in the pool
		c, err := s.logIn(user)
		if err != nil {
			return err
		}
		return errors.Join(checkOK(c.Do("LOGOUT")), c.Close())
	})
	s.forEachUser(idleUserCount, func(user string) error { // IDLE makes the gateway use an aux connection
		c, err := s.logIn(user)
		if err != nil {
			return err
		}
		s.addSession(c)
		tag, err := c.Send("IDLE")
		if err == nil {
			err = c.awaitContinuation()
		}
		if err == nil {
			_, err = io.WriteString(c, "DONE\r\n")
		}
		return errors.Join(err, checkOK(c.ReadUntil(tag)))
	})
	s.checkDescriptors()
	s.forEachUser(slots-idleUserCount, func(user string) error {
		c, err := s.logIn(user)
		if err == nil {
			s.addSession(c)
		}
		return err
	})
	s.checkDescriptors()
	if n := s.b.sumMetric(t, "imapgate_sessions"); int(n) != slots {
		t.Fatalf("%v sessions, want %d", n, slots)
	}
	s.expectRefusal()

	stop, newClients := make(chan struct{}), new(sync.WaitGroup)
	for range 4 {
		newClients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.expectRefusal()
				}
			}
		})
	}
	for range 2 {
		s.faultProxy.ResetConns()
		s.forEachSession(func(c *RawClient) error { return checkOK(c.Do("UID SEARCH ALL")) })
		s.checkDescriptors()
	}
	close(stop)
	newClients.Wait()
	if n := s.b.sumMetric(t, "imapgate_sessions"); int(n) != slots {
		t.Errorf("%v sessions, want %d", n, slots)
	}
	if out := s.b.process.Output(); strings.Contains(out, "too many open files") {
		t.Errorf("descriptors ran out:\n%s", out)
	}
}

// forEachUser calls do for n users, several at a time.
func (s *descriptorTest) forEachUser(n int, do func(user string) error) {
	s.Helper()
	var all errgroup.Group
	all.SetLimit(8)
	for i := range n {
		all.Go(func() error { return do(fmt.Sprint("user", i)) })
	}
	if err := all.Wait(); err != nil {
		s.Fatalf("%v\n%s", err, s.b.process.Output())
	}
}

// forEachSession calls do for all sessions at once.
func (s *descriptorTest) forEachSession(do func(*RawClient) error) {
	s.Helper()
	var all errgroup.Group
	for _, c := range s.sessions {
		all.Go(func() error { return do(c) })
	}
	if err := all.Wait(); err != nil {
		s.Fatalf("%v\n%s", err, s.b.process.Output())
	}
}

// logIn opens a session and selects a mailbox.
func (s *descriptorTest) logIn(user string) (*RawClient, error) {
	c, err := dialIMAP(s.b.endpoint("implicit"), "")
	if err != nil {
		return nil, err
	}
	s.Cleanup(func() { _ = c.Close() })
	return c, errors.Join(checkOK(c.Do("LOGIN "+user+" "+password)), checkOK(c.Do("SELECT INBOX")))
}

func (s *descriptorTest) addSession(c *RawClient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = append(s.sessions, c)
}

// expectRefusal checks that a new client is refused for lack of descriptors.
func (s *descriptorTest) expectRefusal() {
	c, err := Connect(s.b.addresses["starttls"], nil)
	if err != nil {
		s.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	if got, err := c.Read(); err != nil || got.Text != "* BYE [UNAVAILABLE] Too many connections." {
		s.Errorf("a new client got %q, %v", got.Text, err)
	}
}

// checkDescriptors checks that some descriptors are left.
func (s *descriptorTest) checkDescriptors() {
	s.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.b.process.PID()))
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("%d descriptors", len(open))
	if len(open) > descriptorLimit-descriptors.Reserved/4 {
		s.Errorf("%d descriptors are open of %d", len(open), descriptorLimit)
	}
}
