package model

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// only is the one backend.
const only = "only"

// backend is the mail server of a test. join makes accounts there.
type backend struct {
	address string
	join    func(users ...string) error
	odd     Oddities
}

// startBackend starts the mail server of all runs of a test: Dovecot, or the Cyrus of
// this run. One of Dovecot's processes serves many logins: a new process for each
// attach would be most of what a run costs.
func startBackend(t testing.TB) *backend {
	t.Helper()
	if testbed.HasCyrus() {
		d := testbed.StartCyrus(t, testbed.CyrusConfig{})
		join := func(users ...string) error { return d.Join(password, users...) }
		return &backend{d.Plain, join, Oddities{CopiesGone: true, SilentHides: strings.HasPrefix(d.Version(), "3.1")}}
	}
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, LoginsPerProcess: 1000, Processes: 4})
	return &backend{d.Plain, func(...string) error { return nil }, Oddities{}} // everybody has an account
}

// startBreaker starts what stands before the backend.
func startBreaker(t testing.TB, target string) *Breaker {
	t.Helper()
	b, err := StartBreaker(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// gateway is one in this process.
type gateway struct {
	// Set once.
	server *proxy.Server
	dir    string // has its log
	cancel context.CancelFunc
	wg     sync.WaitGroup // all that runs
	closes []func() error
}

// startGateway starts a gateway whose one backend is at address. Nothing has
// TLS: the breaker has to see what is said.
func startGateway(c Config, address, dir string) (*gateway, error) {
	g := &gateway{dir: dir}
	rooms, err := g.open(address)
	if err != nil {
		return nil, err
	}
	g.server, err = proxy.New(proxy.Config{
		Preauth: time.Minute, Handshake: 10 * time.Second, Idle: 32 * time.Minute, Write: 5 * time.Minute,
		Modes: map[string]proxy.Mode{only: {Name: string(c.Mode), Mux: mux.Settings{
			ReuseTTL: time.Minute, MaxPerUser: 50, Consistent: true, Learn: cmp.Or(c.Learn, mux.Eager), VerifyView: c.Verify, AlwaysDetach: c.Detach,
		}.WithDefaults()}},
		AuthAttempts: 3, BadCommands: 3, Instance: proxy.NewInstance(),
		Listeners: []proxy.Listener{{Name: "clients", Address: "127.0.0.1:0", TLS: proxy.NoTLS}},
	}, rooms)
	if err == nil {
		err = g.server.Listen()
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	for _, run := range []func(context.Context) error{rooms.Routes.Run, rooms.Auth.Run, g.server.Serve} {
		g.wg.Go(func() { _ = run(ctx) }) // these return nil
	}
	return g, nil
}

// open makes the rooms.
func (g *gateway) open(address string) (proxy.Rooms, error) {
	file, err := os.Create(filepath.Join(g.dir, "log"))
	if err != nil {
		return proxy.Rooms{}, err
	}
	log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.Lock(file), zapcore.InfoLevel))
	rooms := proxy.Rooms{Log: log, Metrics: metrics.New("test")}
	rooms.Routes, err = routing.New(routing.Config{
		Source: routing.SourceStatic, Backends: []string{only}, Static: routing.Static{Default: only},
	}, nil, routing.Metrics{Lookup: rooms.Metrics.RouteLookup}, log)
	if err != nil {
		return rooms, err
	}
	nobody := func(context.Context, identity.User) (identity.Secret, error) {
		return identity.Secret{}, auth.ErrUnknown
	}
	if rooms.Auth, err = auth.New(auth.Config{Methods: []string{auth.Passthrough}}, auth.Sources{Redis: nobody}, log); err != nil {
		return rooms, err
	}
	rooms.Backends = map[string]*upstream.Backend{only: upstream.New(upstream.Config{
		Name: only, Address: address, TLSMode: upstream.NoTLS,
		Socket: func(tcp *net.TCPConn) net.Conn { return quiet.NewSocket(tcp) },
	}, upstream.Hooks{OnConnect: rooms.Metrics.Backend(only).ConnectDone}, log)}
	if rooms.Limits, err = limit.New(limit.Config{}, nil, limit.Hooks{}, log); err != nil {
		return rooms, err
	}
	rooms.Audit, err = audit.Open(audit.Config{Path: filepath.Join(g.dir, "audit"), Commands: audit.AllCommands}, log)
	if err == nil {
		g.closes = []func() error{rooms.Audit.Close, file.Close}
	}
	return rooms, err
}

// address is where clients connect.
func (g *gateway) address() string { return g.server.Addrs()["clients"].String() }

// close ends the gateway, waits for all of it and gives the end of its log.
func (g *gateway) close() (log string, err error) {
	g.cancel()
	g.server.Close()
	g.wg.Wait()
	for _, c := range g.closes {
		err = errors.Join(err, c())
	}
	text, readErr := os.ReadFile(filepath.Join(g.dir, "log"))
	if bytes.Contains(text, []byte("broke a promise of IMAP")) {
		err = errors.Join(err, violation("the gateway blames a backend that has kept its promises"))
	}
	return string(text[max(0, len(text)-8<<10):]), errors.Join(err, readErr)
}
