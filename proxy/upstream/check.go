package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2/imapclient"
	"go.uber.org/zap"

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
	Check        event.HealthCheck `yaml:"check" default:"greeting" set:"HealthCheck" reload:"new" doc:"What a check does. connect: a connection, with TLS if the backend has it. greeting: also the greeting. login: also LOGIN as user, and NOOP."`
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
	if needed := map[bool]int{true: s.Fall, false: s.Rise}[r.isUp]; r.streak < needed {
		return false
	}
	r.isUp, r.streak = !r.isUp, 0
	return true
}

// Run checks the addresses and follows DNS until ctx is done. It returns nil.
func (b *Backend) Run(ctx context.Context) error {
	b.isWatched.Store(b.cfg().Health.Interval > 0)
	defer b.isWatched.Store(false)
	var wg sync.WaitGroup
	defer wg.Wait()
	watched := make(map[*address]context.CancelFunc)
	defer func() {
		for _, stop := range watched {
			stop()
		}
	}()
	for {
		if err := b.refreshAddresses(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn("the addresses of the backend cannot be looked up; the known ones stay in use", zap.Error(err))
		}
		b.isWatched.Store(b.cfg().Health.Interval > 0)
		current := make(map[*address]bool)
		for _, a := range b.list() {
			current[a] = true
			if watched[a] == nil {
				watchCtx, stop := context.WithCancel(ctx)
				watched[a] = stop
				wg.Go(func() { a.watch(watchCtx) })
			}
		}
		for a, stop := range watched {
			if !current[a] {
				stop()
				delete(watched, a)
			}
		}
		timer := time.NewTimer(b.cfg().Resolve)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-b.changed:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// watch checks an address until ctx is done.
func (a *address) watch(ctx context.Context) {
	for {
		cfg := a.backend.cfg()
		wait := cfg.Health.Interval
		if wait == 0 {
			wait = cfg.Resolve // to notice that checks are wanted
		} else {
			wait = wait*9/10 + rand.N(wait/5+1)
			if probe, ok := a.circuit.untilProbe(time.Now()); ok {
				wait = min(wait, probe)
			}
		}
		if sleep.For(ctx, max(wait, minCheckInterval)) != nil {
			return
		}
		if cfg := a.backend.cfg(); cfg.Health.Interval > 0 {
			a.check(ctx, cfg)
		}
	}
}

// minCheckInterval bounds the checks of an address.
const minCheckInterval = 10 * time.Millisecond

// check makes one health check. If the circuit is open it is also the probe.
func (a *address) check(ctx context.Context, cfg *Config) {
	isProbe := a.circuit.takeProbe(time.Now(), cfg.Breaker.Hold)
	began := time.Now()
	err := a.runCheck(ctx, cfg)
	if ctx.Err() != nil {
		return
	}
	took := time.Since(began)
	if err == nil && isProbe {
		a.circuit.recordSuccess()
	}
	a.mu.Lock()
	a.checked.record(err, &cfg.Health)
	a.checkLatency = took.Seconds()
	a.mu.Unlock()
	a.report()
}

// runCheck connects, and does what the configuration says.
func (a *address) runCheck(ctx context.Context, cfg *Config) error {
	ctx, cancel := context.WithTimeout(ctx, cfg.Health.Timeout)
	defer cancel()
	deadline := time.Now().Add(cfg.Health.Timeout)
	nc, err := a.dial.connect(ctx, deadline, cfg.Resolve)
	if err != nil {
		return publicError(fmt.Errorf("%w: %w", errConnect, err))
	}
	c := &loginConn{backend: a.backend, cfg: cfg, host: a.dial.host, conn: imap.NewConn(nc, imap.Responses, maxLine), deadline: deadline, bytesLeft: maxTotal, tagSuffix: "check"}
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
	if err := c.sendProxyHeader(Client{}); err != nil {
		return err
	}
	if c.cfg.TLS == event.ImplicitTLS {
		if err := c.handshakeTLS(c.cfg.clientTLS(c.host)); err != nil {
			return err
		}
	}
	switch c.cfg.Health.Check {
	case event.CheckConnect:
		return nil
	case event.CheckGreeting:
		return c.readGreeting()
	}
	return c.checkLogin()
}

var errCheckLogin = errors.New("the login of the health check failed")

// checkLogin logs in as the user of the health check, and sends NOOP.
func (c *loginConn) checkLogin() error {
	conn := limitedConn{c.conn.NetConn(), io.LimitReader(c.conn.NetConn(), maxTotal)}
	var client *imapclient.Client
	if c.cfg.TLS == event.StartTLS {
		var err error
		if client, err = imapclient.NewStartTLS(conn, &imapclient.Options{TLSConfig: c.cfg.clientTLS(c.host)}); err != nil {
			return fmt.Errorf("%w: %w", errCheckLogin, err)
		}
	} else {
		client = imapclient.New(conn, nil)
	}
	defer client.Close()
	h := &c.cfg.Health
	if err := client.Login(h.User, h.Password.Current().Reveal()).Wait(); err != nil {
		return fmt.Errorf("%w: %w", errCheckLogin, err)
	}
	if err := client.Noop().Wait(); err != nil {
		return fmt.Errorf("%w: %w", errCheckLogin, err)
	}
	_ = client.Logout().Wait() // the check has succeeded
	return nil
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
