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
	fewDescriptors = 300
	fewUsers       = 60
)

// scarcity is a gateway with few descriptors, in mode resume, before a Dovecot that can
// be away, and its sessions.
type scarcity struct {
	*testing.T
	b    *binary
	door *faultproxy.Proxy

	mu       sync.Mutex
	sessions []*RawClient // Guarded by mu.
}

// Sixty people have two sessions each, as far as there is room; before that each has left
// a connection that only waits, and the gateway has asked questions of its own. Then all
// connections to the backend end at once, while strangers come without end.
func TestFewDescriptorsRefuseStrangersAndCutNobody(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	s := &scarcity{T: t, door: faultproxy.Start(t, backend.Plain)}
	limit := []string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, fewDescriptors)}
	s.b = startUnder(t, limit, backend.CA, fmt.Sprintf(`backends:
  east: {address: %q, tls: none, mode: resume, mux: {credential_cache: true, pool_idle_timeout: 30m, command_hold_timeout: 4m}}
routing: {source: static, static: {default: east}}`, s.door.Address()))
	slots := int(descriptors.Slots(fewDescriptors))

	s.each(fewUsers, func(user string) error { // leaves a connection behind
		c, err := s.logIn(user)
		if err != nil {
			return err
		}
		return errors.Join(okay(c.Do("LOGOUT")), c.Close())
	})
	s.each(fewUsers, func(user string) error { // has the gateway ask something aside
		c, err := s.logIn(user)
		if err != nil {
			return err
		}
		s.keep(c)
		tag, err := c.Send("IDLE")
		if err == nil {
			err = c.goAhead()
		}
		if err == nil {
			_, err = io.WriteString(c, "DONE\r\n")
		}
		return errors.Join(err, okay(c.Until(tag)))
	})
	s.fits()
	s.each(slots-fewUsers, func(user string) error {
		c, err := s.logIn(user)
		if err == nil {
			s.keep(c)
		}
		return err
	})
	s.fits()
	if n := s.b.metric(t, "imapgate_sessions"); int(n) != slots {
		t.Fatalf("%v sessions, want %d", n, slots)
	}
	s.refused()

	stop, strangers := make(chan struct{}), new(sync.WaitGroup)
	for range 4 {
		strangers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					s.refused()
				}
			}
		})
	}
	for range 2 {
		s.door.Reset()
		s.all(func(c *RawClient) error { return okay(c.Do("UID SEARCH ALL")) })
		s.fits()
	}
	close(stop)
	strangers.Wait()
	if n := s.b.metric(t, "imapgate_sessions"); int(n) != slots {
		t.Errorf("%v sessions, want %d", n, slots)
	}
	if out := s.b.process.Output(); strings.Contains(out, "too many open files") {
		t.Errorf("descriptors ran out:\n%s", out)
	}
}

// each calls do for so many users, some at a time.
func (s *scarcity) each(n int, do func(user string) error) {
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

// all calls do for all sessions at once.
func (s *scarcity) all(do func(*RawClient) error) {
	s.Helper()
	var all errgroup.Group
	for _, c := range s.sessions {
		all.Go(func() error { return do(c) })
	}
	if err := all.Wait(); err != nil {
		s.Fatalf("%v\n%s", err, s.b.process.Output())
	}
}

// logIn is a session with a mailbox.
func (s *scarcity) logIn(user string) (*RawClient, error) {
	c, err := reach(s.b.endpoint("implicit"), "")
	if err != nil {
		return nil, err
	}
	s.Cleanup(func() { _ = c.Close() })
	return c, errors.Join(okay(c.Do("LOGIN "+user+" "+password)), okay(c.Do("SELECT INBOX")))
}

func (s *scarcity) keep(c *RawClient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = append(s.sessions, c)
}

// refused wants a stranger to be told that there is no room.
func (s *scarcity) refused() {
	c, err := Connect(s.b.at["starttls"], nil)
	if err != nil {
		s.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	if got, err := c.Read(); err != nil || got.Text != "* BYE [UNAVAILABLE] Too many connections." {
		s.Errorf("a stranger heard %q, %v", got.Text, err)
	}
}

// fits wants some descriptors to be left.
func (s *scarcity) fits() {
	s.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.b.process.PID()))
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("%d descriptors", len(open))
	if len(open) > fewDescriptors-descriptors.Reserved/4 {
		s.Errorf("%d descriptors are open of %d", len(open), fewDescriptors)
	}
}
