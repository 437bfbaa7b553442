package model

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/config"
	imapgate "imapgate/internal/gateway"
	"imapgate/internal/testbed"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux"
)

// backend is the mail server of a test.
type backend struct {
	address  string
	addUsers func(users ...string) error
	quirks   Quirks
}

// startBackend starts the mail server for all runs of a test: Cyrus if there is one, else
// Dovecot.
func startBackend(t testing.TB) *backend {
	t.Helper()
	if testbed.HasCyrus() {
		d := testbed.StartCyrus(t, testbed.CyrusConfig{})
		addUsers := func(users ...string) error { return d.AddUsers(password, users...) }
		return &backend{d.Plain, addUsers, Quirks{CopiesExpunged: true, SilentHidesChanges: strings.HasPrefix(d.Version(), "3.1")}}
	}
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, Processes: 4})
	return &backend{d.Plain, func(...string) error { return nil }, Quirks{}} // any user name is valid
}

// startFaultProxy starts a fault proxy in front of the backend.
func startFaultProxy(t testing.TB, target string) *FaultProxy {
	t.Helper()
	b, err := StartFaultProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// gateway is a gateway in the test's process.
type gateway struct {
	// Set once.
	*imapgate.Gateway
	dir    string // folder of its log
	log    io.Closer
	cancel context.CancelFunc
	ended  chan error // the error of Run

	moving sync.WaitGroup // moves in progress
}

// startGateway starts a gateway whose only backend is at address. Neither side uses TLS,
// so that the fault proxy can read the dialogue.
func startGateway(c Config, address, dir string) (*gateway, error) {
	file := filepath.Join(dir, "imapgate.yaml")
	text := fmt.Sprintf(`
listeners: [{name: clients, address: "127.0.0.1:0", tls: none}]
routing: {source: static, static: {default: only}}
backends:
  only:
    {address: %q, tls: none, mode: %s,
     mux: {max_per_user: 50, silence_timeout: 0s, uid_prefetch: %s, consistency_check: %s}}
limits: {drain_timeout: 0s, connections: {per_user: 0, per_user_address: 0}}
audit: {path: %q, commands: all}
admin: {address: ""}
`, address, c.Mode, cmp.Or(c.UIDPrefetch, mux.PrefetchEager), cmp.Or(c.Verify, mux.CheckOff), filepath.Join(dir, "audit"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cfg, err := config.Load(file)
	if err != nil {
		return nil, err
	}
	only := cfg.Backends["only"]
	only.Mux.AlwaysDetach = c.Detach
	cfg.Backends["only"] = only
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(logFile), zapcore.InfoLevel))
	g := &gateway{dir: dir, log: logFile, ended: make(chan error, 1)}
	if g.Gateway, err = imapgate.Open(cfg, imapgate.Options{Log: log, Version: "test"}); err != nil {
		return nil, errors.Join(err, logFile.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	go func() { g.ended <- g.Run(ctx) }()
	return g, nil
}

// address returns the address for clients.
func (g *gateway) address() string { return g.Addrs()["clients"].String() }

// moveSome asks some sessions for a move, before or during the next command, or pauses them
// for a while.
func (g *gateway) moveSome(rng *rand.Rand) {
	all := g.Registry().Sessions()
	slices.SortFunc(all, func(a, b *relay.Session) int { return a.Info().StartedAt.Compare(b.Info().StartedAt) })
	for _, s := range all {
		delay, length := time.Duration(rng.IntN(4))*time.Millisecond, time.Duration(rng.IntN(30))*time.Millisecond
		what := rng.IntN(4)
		g.moving.Go(func() {
			<-time.After(delay)
			switch what {
			case 0:
				s.Move()
			case 1:
				s.Pause()
				<-time.After(length)
				s.Resume()
			}
		})
	}
}

// close stops the gateway, waits for its goroutines and returns the end of its log.
func (g *gateway) close() (log string, err error) {
	g.moving.Wait()
	g.cancel()
	err = <-g.ended
	g.Close()
	err = errors.Join(err, g.log.Close())
	text, readErr := os.ReadFile(filepath.Join(g.dir, "log"))
	if bytes.Contains(text, []byte("backend violated IMAP")) {
		err = errors.Join(err, newViolation("the gateway blames a backend that has kept its promises"))
	}
	return string(text[max(0, len(text)-8<<10):]), errors.Join(err, readErr)
}
