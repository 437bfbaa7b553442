package tests

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/admin/legacy"
	"imapgate/internal/config"
	"imapgate/internal/event"
	imapgate "imapgate/internal/gateway"
	"imapgate/internal/testbed"
	"imapgate/routing"
)

// gateway is a whole gateway in this process, with a listener of each kind.
type gateway struct {
	// Set once.
	*imapgate.Gateway
	t        testing.TB
	ca       *testbed.CA
	dir      string // folder of configuration, log and audit log
	cancel   context.CancelFunc
	drained  chan struct{} // closed when Run has returned
	stopOnce sync.Once
}

// startGateway starts a gateway whose configuration has these sections, and stops it when
// the test ends. The CA issues the gateway's certificate for localhost and 127.0.0.1.
func startGateway(t testing.TB, ca *testbed.CA, sections ...string) *gateway {
	t.Helper()
	return startTunedGateway(t, ca, func(*config.Config) {}, sections...)
}

// startTunedGateway is startGateway with settings that only tests have.
func startTunedGateway(t testing.TB, ca *testbed.CA, tune func(*config.Config), sections ...string) *gateway {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	g := &gateway{t: t, ca: ca, dir: t.TempDir(), cancel: cancel, drained: make(chan struct{})}
	cfg, err := config.Load(g.writeConfig(strings.Join(sections, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	tune(cfg)
	log, closeLog, err := zap.Open(filepath.Join(g.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	g.Gateway, err = imapgate.Open(cfg, imapgate.Options{Log: zap.New(zapcore.NewCore(encoder, log, zapcore.DebugLevel)), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(g.drained)
		if err := g.Run(ctx); err != nil {
			t.Errorf("run the gateway: %v", err)
		}
	}()
	t.Cleanup(func() { g.stop(); closeLog() })
	return g
}

// writeConfig writes a configuration with these sections and returns its path. By default
// nothing is limited, stopping ends all sessions, and as many TLS handshakes are computed
// as any test has, so that no client is refused because the machine is busy.
func (g *gateway) writeConfig(sections string) string {
	cert, key := g.ca.Issue(g.t, "localhost", "127.0.0.1")
	conf := fmt.Sprintf("tls: {certificates: [{cert: %q, key: %q}]}\nadmin: {address: \"127.0.0.1:0\"}\nlisteners:\n", cert, key)
	for _, kind := range listeners {
		conf += fmt.Sprintf("  - {name: %s, address: \"127.0.0.1:0\", tls: %[1]s}\n", kind)
	}
	limits := "tls_handshakes: 1000, tls_handshake_timeout: 60s"
	if !strings.Contains(sections, "drain_timeout:") {
		limits += ", drain_timeout: 0s"
	}
	if !strings.Contains(sections, "connections:") {
		limits += ", connections: {per_user: 0, per_user_address: 0}"
	}
	conf += addKeys(addKeys(sections, "limits", limits), "audit", fmt.Sprintf("path: %q", filepath.Join(g.dir, "audit")))
	return writeText(g.t, "imapgate.yaml", conf)
}

// addKeys adds keys to a block in flow style, which is added if there is none.
func addKeys(conf, block, keys string) string {
	before, rest, found := strings.Cut(conf, block+": {")
	if !found {
		return conf + "\n" + block + ": {" + keys + "}\n"
	}
	return before + block + ": {" + keys + ", " + rest
}

// writeText writes a file to a new folder of the test and returns its path.
func writeText(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// listeners are all kinds of listeners, which are also their names in these tests.
var listeners = []event.TLSMode{event.ImplicitTLS, event.StartTLS, event.NoTLS}

// endpoint returns the endpoint of a listener.
func (g *gateway) endpoint(kind event.TLSMode) endpoint {
	e := endpoint{address: g.Addrs()[string(kind)].String(), caFile: g.ca.File, starttls: kind == event.StartTLS}
	if kind != event.NoTLS {
		e.tls = g.ca.ClientTLS("localhost")
	}
	return e
}

// terminate starts a drain, as SIGTERM does. drained is closed when it is over.
func (g *gateway) terminate() { g.cancel() }

// stop stops the gateway and waits for its goroutines. It may be called again.
func (g *gateway) stop() {
	g.stopOnce.Do(func() {
		g.cancel()
		<-g.drained
		g.Close()
		log := g.readFile("log")
		for _, fault := range []string{"are still taken after the last session", "shutdown: close failed"} {
			if strings.Contains(log, fault) {
				g.t.Errorf("the gateway's log has %q", fault)
			}
		}
		if g.t.Failed() {
			g.t.Logf("the gateway's log ends so:\n%s", logTail(log))
		}
	})
}

// explain returns the route of a user.
func (g *gateway) explain(user string) (x routing.Explanation) {
	g.t.Helper()
	g.query("/v1/routes/explain", "user", user, &x)
	return x
}

// limitStatus returns what counts for the limits of a user.
func (g *gateway) limitStatus(user string) (s legacy.LimitStatus) {
	g.t.Helper()
	g.query("/v1/limits", "who", user, &s)
	return s
}

// query decodes the answer of the admin address to a request about a user.
func (g *gateway) query(path, parameter, user string, into any) {
	g.t.Helper()
	r, err := http.Get("http://" + g.AdminAddr().String() + path + "?" + url.Values{parameter: {user}}.Encode())
	if err != nil {
		g.t.Fatal(err)
	}
	defer r.Body.Close() // read completely
	if err := json.NewDecoder(r.Body).Decode(into); err != nil || r.StatusCode != http.StatusOK {
		g.t.Fatalf("%s of %q: %s, %v", path, user, r.Status, err)
	}
}

// readFile returns the text so far of one of the gateway's files.
func (g *gateway) readFile(name string) string {
	text, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// logTail returns the last 8 KB of a text.
func logTail(s string) string { return s[max(0, len(s)-8<<10):] }

// onlyBackend is the name of the default backend of a gateway without Redis.
const onlyBackend = "only"

// singleBackend returns the sections of a gateway whose users are all at one backend.
func singleBackend(backend string) string {
	return staticBackends(map[string]string{onlyBackend: backend}, map[string]string{})
}

// staticBackends returns the sections of several backends and of the users' routes. Other
// users are at onlyBackend, if there is one.
func staticBackends(backends, users map[string]string) string {
	static := map[string]any{"users": users}
	if _, ok := backends[onlyBackend]; ok {
		static["default"] = onlyBackend
	}
	text, err := json.Marshal(static) // which is YAML
	if err != nil {
		panic(err) // it has only strings
	}
	return backendsConf(backends) + "routing: {source: static, static: " + string(text) + "}\n"
}

// backendsConf returns the section of several backends.
func backendsConf(backends map[string]string) string {
	conf := "backends:\n"
	for name, backend := range backends {
		conf += fmt.Sprintf("  %s: {%s}\n", name, backend)
	}
	return conf
}

// backendConf returns the settings of a mail server with a TLS mode.
func backendConf(backend mailServer, mode event.TLSMode) string {
	endpoints := backend.Endpoints()
	if mode == event.ImplicitTLS {
		return backendConfAt(endpoints.TLS, mode, endpoints.CA)
	}
	return backendConfAt(endpoints.Plain, mode, endpoints.CA)
}

// backendConfAt returns the settings of a backend at an address.
func backendConfAt(address string, mode event.TLSMode, ca *testbed.CA) string {
	if mode == event.NoTLS {
		return plainBackend(address)
	}
	return fmt.Sprintf("address: %q, tls: %s, ca: %q, server_name: %s", address, mode, ca.File, testbed.DovecotName)
}

// plainBackend returns the settings of a backend without TLS.
func plainBackend(address string) string { return fmt.Sprintf("address: %q, tls: none", address) }

// muxMode returns the settings of a backend with a mode, eager UID prefetch and more keys
// of the block mux. All begin with a comma.
func muxMode(mode event.Mode, more string) string {
	if !strings.Contains(more, "uid_prefetch:") {
		more += ", uid_prefetch: eager"
	}
	return fmt.Sprintf(", mode: %s, mux: {credential_cache: true%s}", mode, more)
}

// alwaysDetach makes sessions release their upstream after each command.
func alwaysDetach(cfg *config.Config) {
	for name, b := range cfg.Backends {
		b.Mux.AlwaysDetach = true
		cfg.Backends[name] = b
	}
}

// directEndpoint connects to the backend itself, over implicit TLS.
func directEndpoint(backend mailServer) endpointFunc {
	endpoints := backend.Endpoints()
	return func(testing.TB, string) endpoint {
		return endpoint{address: endpoints.TLS, tls: endpoints.CA.ClientTLS(testbed.DovecotName), caFile: endpoints.CA.File}
	}
}

// gatewayEndpoint starts a gateway in front of the backend, with TLS on both sides.
func gatewayEndpoint(t testing.TB, backend mailServer) endpointFunc {
	g := startGateway(t, backend.Endpoints().CA, singleBackend(backendConf(backend, event.ImplicitTLS)))
	return func(testing.TB, string) endpoint { return g.endpoint(event.ImplicitTLS) }
}

// plainGatewayEndpoint starts a gateway without TLS on either side, so that the kernel
// copies the bytes.
func plainGatewayEndpoint(t testing.TB, backend mailServer) endpointFunc {
	g := startGateway(t, backend.Endpoints().CA, singleBackend(backendConf(backend, event.NoTLS)))
	return func(testing.TB, string) endpoint { return g.endpoint(event.NoTLS) }
}

// muxGatewayEndpoint starts a gateway in a mux mode, with TLS on both sides. Fetching UIDs
// and mod-sequences would change the backend's responses, so it is not eager.
func muxGatewayEndpoint(t testing.TB, backend mailServer, mode event.Mode) endpointFunc {
	g := startGateway(t, backend.Endpoints().CA, singleBackend(backendConf(backend, event.ImplicitTLS)+muxMode(mode, ", uid_prefetch: auto")))
	return func(testing.TB, string) endpoint { return g.endpoint(event.ImplicitTLS) }
}
