package model

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// only is the one backend.
const only = "only"

// backendSettings let one process of Dovecot serve many logins: a new process
// for each attach would be most of what a run costs.
const backendSettings = `
service imap {
  service_count = 1000
  process_min_avail = 4
}
`

// startBackend starts the Dovecot of all runs of a test.
func startBackend(t testing.TB) *testbed.Dovecot {
	t.Helper()
	return testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, Settings: backendSettings})
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

// startGateway starts a gateway in this process whose one backend is at address,
// and gives the address of its clients. Nothing has TLS: the breaker has to see
// what is said.
func startGateway(t testing.TB, mode Mode, address string) string {
	t.Helper()
	dir := t.TempDir()
	log, closeLog := openLog(t, filepath.Join(dir, "log"))
	rooms := proxy.Rooms{Log: log, Metrics: metrics.New("test")}
	var err error
	rooms.Routes, err = routing.New(routing.Config{
		Source: routing.SourceStatic, Backends: []string{only}, Static: routing.Static{Default: only},
	}, nil, routing.Metrics{Lookup: rooms.Metrics.RouteLookup}, log)
	if err != nil {
		t.Fatal(err)
	}
	nobody := func(context.Context, identity.User) (identity.Secret, error) {
		return identity.Secret{}, auth.ErrUnknown
	}
	if rooms.Auth, err = auth.New(auth.Config{Methods: []string{auth.Passthrough}}, nobody, log); err != nil {
		t.Fatal(err)
	}
	rooms.Backends = map[string]*upstream.Backend{only: upstream.New(upstream.Config{
		Name: only, Address: address, TLSMode: upstream.NoTLS,
		Socket: func(tcp *net.TCPConn) net.Conn { return quiet.NewSocket(tcp) },
	}, upstream.Hooks{OnConnect: rooms.Metrics.Backend(only).ConnectDone}, log)}
	if rooms.Audit, err = audit.Open(audit.Config{Path: filepath.Join(dir, "audit")}, log); err != nil {
		t.Fatal(err)
	}
	server, err := proxy.New(proxy.Config{
		Preauth: time.Minute, Handshake: 10 * time.Second, Idle: 32 * time.Minute, Write: 5 * time.Minute,
		AuthAttempts: 3, BadCommands: 3, Instance: proxy.NewInstance(),
		Listeners: []proxy.Listener{{Name: "clients", Address: "127.0.0.1:0", TLS: proxy.NoTLS}},
	}, rooms)
	if err == nil {
		err = server.Listen()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{rooms.Routes.Run, rooms.Auth.Run, server.Serve} {
		wg.Go(func() { _ = run(ctx) }) // these return nil
	}
	t.Cleanup(func() {
		cancel()
		server.Close()
		wg.Wait()
		if err := errors.Join(rooms.Audit.Close(), closeLog()); err != nil {
			t.Errorf("close the gateway: %v", err)
		}
	})
	return server.Addrs()["clients"].String()
}

// openLog writes the gateway's log to a file, whose end is shown when the test
// fails.
func openLog(t testing.TB, path string) (*zap.Logger, func() error) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(file), zapcore.InfoLevel)), func() error {
		if text, err := os.ReadFile(path); err == nil && t.Failed() {
			t.Logf("the gateway's log ends so:\n%s", text[max(0, len(text)-8<<10):])
		}
		return file.Close()
	}
}
