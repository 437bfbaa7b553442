package proxy

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux"
	"imapgate/routing"

	"go.uber.org/zap"
)

// Guarantees about secrets, timing and shutdown.

func TestSecretsAreNeverOutput(t *testing.T) {
	const right, wrong, filed, master = "CANARY1/right pw+", "CANARY2/wrong pw+", "CANARY3/filed pw+", "CANARY4/master pw+"
	m := openTestBackend(t)
	m.password = right
	for _, breakDeps := range []func(*Deps){nil, func(r *Deps) { r.Routes = nil }} {
		b := openHarness(t, m.addr(), func(s *harnessConfig) {
			s.users = "carol@example.org:{PLAIN}" + filed + "\n"
			s.cfg.MaxAuthAttempts = 100
			for _, name := range []string{"hang", "vanish", "refuse", "echo"} {
				s.routes.Static.Users[name] = "east"
			}
			east, mastered := s.backends["east"], s.backends["mastered"]
			east.UpstreamLoginTimeout = time.Second
			mastered.Master.Password = identity.NewSecret(master)
			s.backends["east"], s.backends["mastered"] = east, mastered
			s.changeDeps = breakDeps
		})
		b.tryLeaks(map[string]string{"alice": right, "frank": wrong, "carol": filed, "dave": wrong, "erin": right, "hang": wrong, "vanish": right, "refuse": right, "echo": right})
		if breakDeps != nil {
			b.wantPanics = strings.Count(b.logs.String(), `"msg":"panic recovered"`)
			if b.wantPanics == 0 {
				t.Error("nothing panicked")
			}
		}
		shown := b.metricsText()
		b.stopServer()
		text, err := os.ReadFile(b.path("audit"))
		testkit.NoError(t, err)
		shown += string(text) + b.logs.String()
		for _, found := range testkit.FindSecrets(shown, map[string]string{"right": right, "wrong": wrong, "filed": filed, "master": master}) {
			t.Error(found)
		}
	}
}

// tryLeaks tries every user and password with every mechanism, valid and invalid.
func (b *harness) tryLeaks(logins map[string]string) {
	var clients []*client
	for user, secret := range logins {
		plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + secret))
		for _, text := range []string{
			"a LOGIN " + user + " \"" + secret + "\"\r\n", "a LOGIN " + encodeLiteral(user) + " " + encodeLiteral(secret) + "\r\n",
			"a AUTHENTICATE PLAIN " + plain + "\r\n", "a AUTHENTICATE PLAIN " + plain + "\r\n*\r\n", "a AUTHENTICATE PLAIN\r\n" + plain + "!\r\n",
			"a AUTHENTICATE LOGIN\r\n" + base64.StdEncoding.EncodeToString([]byte(user)) + "\r\n" + base64.StdEncoding.EncodeToString([]byte(secret)) + "\r\n",
			"a LOGIN " + user + " \"" + secret + "\" x\r\n", "a LOGIN " + user + " \"" + secret + "\n", "a LOGIN " + user + " " + secret + "\r\n",
			"a AUTHENTICATE CRAM-MD5 " + plain + "\r\n", secret + " LOGIN\r\n", "a " + secret + "\r\n", "a LOGIN " + user + " {9999+}\r\n" + secret + "\r\n",
			"a LOGIN " + user + " " + encodeLiteral(secret+"\r\n") + "\r\n", "a LOGIN " + encodeLiteral(user+"\x00") + " " + encodeLiteral(secret) + "\r\n",
		} {
			c := b.dialGreeted("none")
			c.write(text)
			clients = append(clients, c)
		}
		cancelled := b.dialGreeted("none")
		cancelled.write("a LOGIN " + user + " " + encodeLiteral(secret) + "\r\n")
		cancelled.reset()
		clear := b.dial("starttls")
		clear.write("a LOGIN " + user + " " + encodeLiteral(secret) + "\r\n")
		clients = append(clients, clear)
	}
	for _, c := range clients {
		_, _ = io.WriteString(c.nc, "zz LOGOUT\r\n")
		c.readAll()
		c.close()
	}
	testkit.Eventually(b.t, "the connections to end", func() bool { return b.server.openConns.Load() == 0 })
}

// `make enumeration` measures whether the times can be distinguished.
func TestDenialsAreUniformAndDelayed(t *testing.T) {
	store := testbed.StartRedis(t)
	for _, name := range []string{"alice", "frank", "blocked"} {
		store.CLI("HSET", "imapgate:user:"+name+"@example.org", "backend", "east")
	}
	store.CLI("HSET", "imapgate:user:blocked@example.org", "state", "blocked")
	rdb, err := routing.Dial(routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{store.Address}}})
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	b := openHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.redis, s.routes.Source = rdb, routing.SourceRedis })
	names := []string{"alice", "frank", "blocked", "unknown", "\"bad name\""}
	for range 3 {
		start := map[*client]time.Time{}
		clients := make([]*client, len(names))
		for i, name := range names { // concurrently, so equally disturbed
			clients[i] = b.dialGreeted("none")
			start[clients[i]] = time.Now()
			clients[i].write("a LOGIN " + name + " wrong\r\n")
		}
		for i, c := range clients {
			c.expectLine("a " + authFailedReply)
			if took := time.Since(start[c]); took < minDenialTime {
				t.Errorf("%s: denied after %v", names[i], took)
			}
			c.close()
		}
	}
	c := b.dialGreeted("none")
	c.write("a LOGIN frank right\r\n")
	c.expectLine("a OK …")
}

func TestHangingBackendLoginEndsAtDeadline(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withExpiredDeadline, func(s *harnessConfig) { // the client's own deadline has passed before
		s.routes.Static.Users["hang"] = "east"
		east := s.backends["east"]
		east.UpstreamLoginTimeout = 500 * time.Millisecond
		s.backends["east"] = east
	})
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.dialGreeted(listener)
		c.write("a LOGIN hang right\r\n")
		c.expectLine("a " + unavailableReply)
		c.expectLine("* BYE Login took too long.")
		c.expectEOF()
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(event.BackendTimeout) {
			t.Error(r)
		}
		if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.PreauthTimeout) {
			t.Error(r)
		}
	}
	testkit.Eventually(t, "the upstream connections to close", func() bool { return m.Open() == 0 })
}

func TestDisconnectedClientReleasesResources(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.routes.Static.Users["hang"] = "east"
		east := s.backends["east"]
		east.UpstreamLoginTimeout = 500 * time.Millisecond
		s.backends["east"] = east
	})
	for _, listener := range []string{"none", "implicit"} {
		c := b.dialGreeted(listener)
		c.write("a LOGIN hang right\r\n")
		<-m.hanging
		c.reset()
	}
	testkit.Eventually(t, "everything to be released", func() bool { return m.Open() == 0 && b.server.openConns.Load() == 0 })
	if r := b.wantRecord("login_refused", event.BackendTimeout); r.field("user") != "hang@example.org" {
		t.Error(r)
	}
}

func TestBackendDeathClosesClientsAtOnce(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	var clients []*client
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.dialGreeted(listener)
		c.write("a LOGIN alice right\r\n")
		c.expectLine("a OK …")
		clients = append(clients, c)
	}
	m.Close()
	for _, c := range clients {
		c.expectEOF()
	}
	c := b.dialGreeted("none")
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a " + unavailableReply)
}

func TestLoginRequiresAuditRecord(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	b.auditFailed = true
	c := b.dialGreeted("none")
	testkit.NoError(t, b.deps.Audit.Close())
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a " + unavailableReply)
	if m.Open() > 0 {
		t.Error("the backend was contacted")
	}
}

func TestPanicEndsOneClientAndIsAudited(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.changeDeps = func(r *Deps) { r.Routes = nil } })
	other := b.dialGreeted("none")
	c := b.dialGreeted("none")
	c.write("a LOGIN carol right\r\n") // its route is looked up in an empty router
	c.expectEOF()
	b.wantPanics = 1
	if r := b.lastRecord("login_refused", c); r.field("reason") != string(event.InternalError) || r.field("user") != "carol@example.org" {
		t.Error(r)
	}
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.InternalError) {
		t.Error(r)
	}
	if !strings.Contains(b.logs.String(), "proxy.(*connection).connect") {
		t.Error("the log has no stack")
	}
	other.write("a NOOP\r\nb LOGIN frank wrong\r\n")
	other.expectLine("a OK …")
	other.expectLine("b " + authFailedReply)
}

// A panic between the login and the relay ends the session, which is registered by then, and
// the connection to the backend.
func TestAPanicAfterTheLoginEndsTheSession(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		s.cfg.Modes = map[string]BackendSettings{"east": {Mode: event.ModeReuse}}
		s.changeServer = func(srv *Server) {
			t.Cleanup(srv.hub.Close)
			hub, err := mux.NewHub(mux.Config{}, mux.Deps{Sessions: srv.sessions, Log: zap.NewNop()})
			testkit.NoError(t, err)
			srv.hub = hub // it knows no backend whose capabilities it could offer
		}
	})
	c := b.dialGreeted("none")
	c.write("a LOGIN alice right\r\n")
	c.expectEOF()
	b.wantPanics = 1
	if r := b.lastRecord("session_ended", c); r.field("reason") != string(event.InternalError) {
		t.Error(r)
	}
	if n := b.server.sessions.Len(); n != 0 {
		t.Errorf("%d sessions are registered", n)
	}
}

func TestDrainEndsPreauthAndWaitsForSessions(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.cfg.DrainTimeout = 5 * time.Second
		s.routes.Static.Users["hang"] = "east"
		s.changeServer = func(srv *Server) { srv.logins.MinDenialTime = time.Minute } // a denial is pending until the gateway stops
	})
	var notified []*client
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.dialGreeted(listener) // idle
		notified = append(notified, c)
		c = b.dialGreeted(listener)
		c.write("a AUTHENTICATE LOGIN YWxpY2U=\r\n")
		c.expectLine("+ …")
		notified = append(notified, c)
		c = b.dialGreeted(listener)
		c.write("a LOGIN frank wrong\r\n") // a pending denial
		notified = append(notified, c)
	}
	hanging := b.dialGreeted("implicit")
	hanging.write("a LOGIN hang right\r\n")
	notified = append(notified, hanging)
	<-m.hanging
	mute := []*client{b.dial("implicit"), b.dial("balanced-implicit"), b.dial("balanced-none")}
	session := b.dialGreeted("implicit")
	session.write("a LOGIN alice right\r\n")
	session.expectLine("a OK …")
	leaving := b.dialGreeted("none")
	leaving.write("a LOGIN alice right\r\n")
	leaving.expectLine("a OK …")
	testkit.Eventually(t, "all to be under way", func() bool {
		return b.server.openConns.Load() == int64(len(notified)+len(mute)+2) && b.server.Registry().Len() == 2
	})

	start := time.Now()
	b.stop()
	for _, c := range notified {
		c.expectLine("* BYE [UNAVAILABLE] Server is going down.")
		c.expectEOF()
	}
	for _, c := range mute[:2] { // TLS has not begun: a BYE in the clear would be invalid
		c.expectEOF()
	}
	mute[2].expectNone("* OK")
	testkit.Eventually(t, "the server to drain", b.server.IsDraining)
	if n := b.server.Registry().Len(); n != 2 {
		t.Errorf("%d sessions", n)
	}
	leaving.close()
	session.write("b NOOP\r\n")
	session.expectLine("b OK Done.")
	session.expectEOF()
	b.stopServer()
	if took := time.Since(start); took < 5*time.Second {
		t.Errorf("it took %v", took)
	}
	for c, why := range map[*client]event.Reason{session: event.Drained, leaving: event.ClientClosed} {
		if r := b.lastRecord("session_ended", c); r.field("reason") != string(why) {
			t.Errorf("%v, want %s", r, why)
		}
	}
	for _, c := range append(notified, mute...) {
		if r := b.lastRecord("connection_refused", c); r.field("reason") != string(event.Shutdown) {
			t.Error(r)
		}
	}
	if r := b.lastRecord("login_refused", hanging); r.field("reason") != string(event.Shutdown) {
		t.Error(r)
	}
}

// Clients disconnected all at once reach the next gateway all at once.
func TestDrainEndsIdleSessionsGradually(t *testing.T) {
	const sessions = 10
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) { s.cfg.DrainTimeout = 3 * time.Second })
	ends := make(chan time.Time, sessions+1)
	for range sessions {
		c := b.dialGreeted("implicit")
		c.write("a LOGIN alice right\r\n")
		c.expectLine("a OK …")
		go func() {
			_, _ = c.r.ReadByte() // waits for the end
			ends <- time.Now()
		}()
	}
	busy := b.dialGreeted("none")
	busy.write("a LOGIN alice right\r\n")
	busy.expectLine("a OK …")
	b.stop()
	testkit.Eventually(t, "the drain", b.server.IsDraining)
	start := time.Now()
	for b.server.Registry().Len() > 1 {
		if _, err := io.WriteString(busy.nc, "b NOOP\r\n"); err != nil { // never idle
			break
		}
		if _, err := busy.r.ReadString('\n'); err != nil {
			break
		}
	}
	if past := time.Since(start); past < 2*time.Second {
		t.Errorf("all idle sessions had ended after %v", past)
	}
	b.stopServer()
	first := <-ends
	for range sessions - 2 {
		<-ends
	}
	if spread := (<-ends).Sub(first); spread < time.Second {
		t.Errorf("all ended within %v", spread)
	}
}

func TestDrainEndsWithLastSession(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.DrainTimeout = time.Minute })
	c := b.dialGreeted("none")
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a OK …")
	b.stop()
	testkit.Eventually(t, "the drain", b.server.IsDraining)
	c.close()
	b.stopServer() // within its own limit
}

func TestSessionLogLineHasFixedKeys(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, text := range []string{"", "b LOGOUT\r\n"} {
		c := b.dialGreeted("none")
		c.write("a LOGIN alice right\r\n" + text)
		c.expectLine("…")
		c.close()
	}
	testkit.Eventually(t, "their lines", func() bool { return strings.Count(b.logs.String(), `"msg":"session"`) == 2 })
	lines := 0
	for line := range strings.Lines(b.logs.String()) {
		var fields map[string]any
		testkit.NoError(t, json.Unmarshal([]byte(line), &fields))
		if fields["msg"] != "session" {
			continue
		}
		lines++
		for _, key := range []string{"session", "user", "backend", "mode", "reason", "bytes", "dur", "err"} {
			if _, there := fields[key]; !there {
				t.Errorf("no %s in %s", key, line)
			}
		}
	}
	if lines != 2 {
		t.Errorf("%d lines of two sessions:\n%s", lines, b.logs)
	}
}
