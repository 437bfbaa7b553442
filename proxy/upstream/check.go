package upstream

import (
	"bytes"
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	goimap "github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/sleep"
)

// HealthSettings are the health checks of a backend's addresses.
type HealthSettings struct {
	Interval     time.Duration     `yaml:"interval" default:"5s" min:"0s" max:"1h" reload:"new" doc:"Time between two checks of an address. 0s: none; then only logins show that an address is down."`
	Timeout      time.Duration     `yaml:"timeout" default:"2s" min:"10ms" max:"1m" reload:"new" doc:"For one check."`
	Rise         int               `yaml:"rise" default:"2" min:"1" max:"100" reload:"new" doc:"Successful checks in a row after which an address is up."`
	Fall         int               `yaml:"fall" default:"3" min:"1" max:"100" reload:"new" doc:"Failed checks in a row after which an address is down: it is used only if no other is up."`
	Check        event.HealthCheck `yaml:"check" default:"greeting" set:"HealthCheck" reload:"new" doc:"What a check does. connect: a connection, with TLS if tls is implicit. greeting: also the greeting, and STARTTLS if tls is starttls. login: also LOGIN as user, and NOOP."`
	User         string            `yaml:"user" form:"label" reload:"new" doc:"For check: login, the user name."`
	PasswordFile string            `yaml:"password_file" file:"secret" reload:"new" doc:"For check: login, file with the password."`

	Password identity.Secret `yaml:"-"` // from PasswordFile
}

// checkResult is the outcome of the latest health checks. It is guarded by address.mu.
type checkResult struct {
	isUp   bool
	streak int    // checks in a row that contradict isUp
	why    string // the latest failure
}

// record records the outcome of a check and reports whether isUp has changed.
func (r *checkResult) record(err error, s *HealthSettings) bool {
	if err != nil {
		r.why = err.Error()
	}
	if (err == nil) == r.isUp {
		r.streak = 0
		return false
	}
	r.streak++
	needed := s.Rise
	if r.isUp {
		needed = s.Fall
	}
	if r.streak < needed {
		return false
	}
	r.isUp, r.streak = !r.isUp, 0
	return true
}

// Run checks the addresses and follows DNS until ctx is done. It returns nil.
func (b *Backend) Run(ctx context.Context) error {
	w := watchers{ctx: ctx, running: make(map[*address]*watcher), failing: make(map[string]bool)}
	defer w.stopAll()
	for {
		w.refreshDNS(b)
		cfg := b.cfg()
		b.isWatched.Store(cfg.Health.Interval > 0)
		w.update(b.list(), cfg.Health)
		timer := time.NewTimer(cfg.Resolve)
		select {
		case <-ctx.Done():
			timer.Stop()
			b.isWatched.Store(false)
			return nil
		case <-b.changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// watchers are the goroutines that check addresses, and what Run remembers of DNS.
type watchers struct {
	ctx     context.Context // of Run
	group   sync.WaitGroup
	running map[*address]*watcher
	failing map[string]bool // lookups whose failure is logged; at most one for each address
}

// watcher is one of them.
type watcher struct {
	settings HealthSettings
	stop     context.CancelFunc
}

// update makes all of the addresses be checked, and no others.
func (w *watchers) update(addresses []*address, s HealthSettings) {
	maps.DeleteFunc(w.failing, func(what string, _ bool) bool { return what != "SRV" && !slices.Contains(hostPorts(addresses), what) })
	for a, old := range w.running {
		if old.settings != s || !slices.Contains(addresses, a) {
			old.stop()
			delete(w.running, a)
		}
	}
	for _, a := range addresses {
		switch {
		case s.Interval == 0:
			a.forgetChecks()
		case w.running[a] == nil:
			ctx, stop := context.WithCancel(w.ctx)
			w.running[a] = &watcher{s, stop}
			w.group.Go(func() { a.watch(ctx) })
		}
	}
}

// stopAll ends the goroutines.
func (w *watchers) stopAll() {
	for _, one := range w.running {
		one.stop()
	}
	w.group.Wait()
}

// watch checks an address until ctx is done.
func (a *address) watch(ctx context.Context) {
	for wait := rand.N(min(a.backend.cfg().Health.Interval, maxFirstWait) + 1); sleep.For(ctx, wait) == nil; wait = a.untilCheck() {
		a.check(ctx, a.backend.cfg())
	}
}

const (
	// minCheckInterval bounds the checks of an address.
	minCheckInterval = 10 * time.Millisecond
	// maxFirstWait bounds the time to the first check, which is random so that not all begin at
	// once.
	maxFirstWait = time.Second
)

// untilCheck returns how long it is until the next check. It is earlier if a login waits for it
// to be the probe of the circuit.
func (a *address) untilCheck() time.Duration {
	wait := a.backend.cfg().Health.Interval
	wait = wait*9/10 + rand.N(wait/5+1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if untilProbe, ok := a.circuit.untilCheck(time.Now()); ok {
		wait = min(wait, untilProbe+minCheckInterval)
	}
	return max(wait, minCheckInterval)
}

// check makes one health check.
func (a *address) check(ctx context.Context, cfg *Config) {
	began := time.Now()
	err := a.runCheck(ctx, cfg)
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	a.mu.Lock()
	a.checked.record(err, &cfg.Health)
	a.circuit.recordCheck(now, &cfg.Breaker, err == nil, cfg.Health.Check == event.CheckLogin)
	a.checkLatency = now.Sub(began).Seconds()
	a.mu.Unlock()
	a.report()
}

// forgetChecks makes the earlier checks of an address count for nothing: there are none any more.
func (a *address) forgetChecks() {
	a.mu.Lock()
	a.checked, a.checkLatency = checkResult{isUp: true}, 0
	a.mu.Unlock()
	a.report()
}

// runCheck connects, and does what the configuration says.
func (a *address) runCheck(ctx context.Context, cfg *Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Health.Timeout)
	defer cancel()
	deadline := time.Now().Add(cfg.Health.Timeout)
	nc, err := a.connect(ctx, deadline)
	if err != nil {
		return publicError(fmt.Errorf("%w: %w", errConnect, err))
	}
	c := &loginConn{
		backend: a.backend, cfg: cfg, host: a.dial.host, conn: imap.NewConn(nc, imap.Responses, maxLine), deadline: deadline,
		bytesLeft: maxTotal, tagSuffix: cryptorand.Text()[:13],
	}
	release := c.conn.BindContext(ctx)
	c.conn.SetDeadline(deadline)
	err = c.check()
	release()
	_ = c.conn.Close()
	if err != nil {
		return publicError(err)
	}
	return nil
}

// check is the dialogue of a health check.
func (c *loginConn) check() error {
	if err := c.begin(Client{}); err != nil || c.cfg.Health.Check == event.CheckConnect {
		return err
	}
	if err := c.greet(); err != nil || c.cfg.Health.Check == event.CheckGreeting {
		return err
	}
	return c.checkLogin()
}

var errCheckLogin = errors.New("the login of the health check failed")

// checkLogin logs in as the user of the health check, and sends NOOP. The greeting has been read
// and is made up for the client, which waits for one.
func (c *loginConn) checkLogin() error {
	received := io.MultiReader(strings.NewReader("* OK ready\r\n"), bytes.NewReader(c.conn.TakeBuffered()), io.LimitReader(c.conn.NetConn(), maxTotal))
	client := imapclient.New(limitedConn{c.conn.NetConn(), received}, nil)
	defer client.Close()
	h := &c.cfg.Health
	if err := client.Login(h.User, h.Password.Current().Reveal()).Wait(); err != nil {
		return explainCheckError(err)
	}
	if err := client.Noop().Wait(); err != nil {
		return explainCheckError(err)
	}
	_ = client.Logout().Wait() // the check has succeeded
	return nil
}

// explainCheckError returns an error with nothing of the backend's text but what may be logged.
func explainCheckError(err error) error {
	var answer *goimap.Error
	if errors.As(err, &answer) {
		res := imap.Response{Name: string(answer.Type), Code: string(answer.Code), Text: answer.Text, IsStatus: true}
		return fmt.Errorf("%w: %s", errCheckLogin, DescribeResponse(res))
	}
	if isTimeout(err) || isClosed(err) {
		return fmt.Errorf("%w: %w", errCheckLogin, err)
	}
	return fmt.Errorf("%w: %w", errCheckLogin, errProtocol)
}

// limitedConn is a connection of which only so much is read.
type limitedConn struct {
	net.Conn
	r io.Reader
}

func (c limitedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// SetReadDeadline and SetWriteDeadline do nothing: the deadline of the check holds.
func (limitedConn) SetReadDeadline(time.Time) error  { return nil }
func (limitedConn) SetWriteDeadline(time.Time) error { return nil }
