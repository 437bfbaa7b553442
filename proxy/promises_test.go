package proxy

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/routing"
)

// What the front door promises about secrets, time and its own end.

// forms are the ways in which a secret could show.
func forms(secret string) []string {
	reversed := []byte(secret)
	slices.Reverse(reversed)
	all := []string{secret, hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))), url.QueryEscape(secret), url.PathEscape(secret), string(reversed)}
	for before := range 3 { // the bytes before it shift base64
		coded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + secret))
		all = append(all, coded[4:len(coded)-3])
	}
	return all
}

func TestF1NoSecretShowsAnywhere(t *testing.T) {
	const right, wrong, filed, master = "CANARY1/right pw+", "CANARY2/wrong pw+", "CANARY3/filed pw+", "CANARY4/master pw+"
	m := openMailbox(t)
	m.password = right
	for _, mistake := range []func(*Rooms){nil, func(r *Rooms) { r.Routes = nil }} {
		b := openBed(t, m.addr(), func(s *setup) {
			s.users = "carol@example.org:{PLAIN}" + filed + "\n"
			s.cfg.AuthAttempts = 100
			for _, name := range []string{"hang", "vanish", "refuse", "echo"} {
				s.routes.Static.Users[name] = "east"
			}
			east, mastered := s.backends["east"], s.backends["mastered"]
			east.LoginTimeout = time.Second
			mastered.Master.Password = identity.NewSecret(master)
			s.backends["east"], s.backends["mastered"] = east, mastered
			s.rooms = mistake
		})
		b.leak(map[string]string{"alice": right, "frank": wrong, "carol": filed, "dave": wrong, "erin": right, "hang": wrong, "vanish": right, "refuse": right, "echo": right})
		if mistake != nil {
			b.faults = strings.Count(b.logs.String(), `"msg":"fault"`)
			if b.faults == 0 {
				t.Error("nothing broke down")
			}
		}
		shown := b.scrape()
		b.end()
		text, err := os.ReadFile(b.path("audit"))
		must(t, err)
		shown += string(text) + b.logs.String()
		for _, secret := range []string{right, wrong, filed, master} {
			for _, form := range forms(secret) {
				if i := strings.Index(shown, form); i >= 0 {
					t.Errorf("%s shows as %s in …%s…", secret, form, shown[max(0, i-300):min(len(shown), i+100)])
				}
			}
		}
	}
}

// leak tries every user and password in every way a client can, good and bad.
func (b *bed) leak(logins map[string]string) {
	var clients []*client
	for user, secret := range logins {
		plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + secret))
		for _, say := range []string{
			"a LOGIN " + user + " \"" + secret + "\"\r\n", "a LOGIN " + literal(user) + " " + literal(secret) + "\r\n",
			"a AUTHENTICATE PLAIN " + plain + "\r\n", "a AUTHENTICATE PLAIN " + plain + "\r\n*\r\n", "a AUTHENTICATE PLAIN\r\n" + plain + "!\r\n",
			"a AUTHENTICATE LOGIN\r\n" + base64.StdEncoding.EncodeToString([]byte(user)) + "\r\n" + base64.StdEncoding.EncodeToString([]byte(secret)) + "\r\n",
			"a LOGIN " + user + " \"" + secret + "\" x\r\n", "a LOGIN " + user + " \"" + secret + "\n", "a LOGIN " + user + " " + secret + "\r\n",
			"a AUTHENTICATE CRAM-MD5 " + plain + "\r\n", secret + " LOGIN\r\n", "a " + secret + "\r\n", "a LOGIN " + user + " {9999+}\r\n" + secret + "\r\n",
			"a LOGIN " + user + " " + literal(secret+"\r\n") + "\r\n", "a LOGIN " + literal(user+"\x00") + " " + literal(secret) + "\r\n",
		} {
			c := b.greeted("none")
			c.say(say)
			clients = append(clients, c)
		}
		cancelled := b.greeted("none")
		cancelled.say("a LOGIN " + user + " " + literal(secret) + "\r\n")
		cancelled.vanish()
		clear := b.dial("starttls")
		clear.say("a LOGIN " + user + " " + literal(secret) + "\r\n")
		clients = append(clients, clear)
	}
	for _, c := range clients {
		_, _ = io.WriteString(c.nc, "zz LOGOUT\r\n")
		c.rest()
		c.close()
	}
	within(b.t, "the connections to end", func() bool { return b.server.open.Load() == 0 })
}

// Whether the times can be told apart is measured: `make enumeration`.
func TestK1EveryDenialIsTheSameBytesAfterALeastTime(t *testing.T) {
	store := testbed.StartRedis(t)
	for _, name := range []string{"alice", "frank", "blocked"} {
		store.CLI("HSET", "imapgate:user:"+name+"@example.org", "backend", "east")
	}
	store.CLI("HSET", "imapgate:user:blocked@example.org", "state", "blocked")
	rdb, err := routing.Dial(routing.RedisConfig{Addresses: []string{store.Address}})
	must(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	b := openBed(t, openMailbox(t).addr(), func(s *setup) { s.redis, s.routes.Source = rdb, routing.SourceRedis })
	names := []string{"alice", "frank", "blocked", "nobody", "\"bad name\""}
	for range 3 {
		began := map[*client]time.Time{}
		clients := make([]*client, len(names))
		for i, name := range names { // at once, and so equally disturbed
			clients[i] = b.greeted("none")
			began[clients[i]] = time.Now()
			clients[i].say("a LOGIN " + name + " wrong\r\n")
		}
		for i, c := range clients {
			c.hear("a " + deniedReply)
			if took := time.Since(began[c]); took < denialFloor {
				t.Errorf("%s: denied after %v", names[i], took)
			}
			c.close()
		}
	}
	c := b.greeted("none")
	c.say("a LOGIN frank right\r\n")
	c.hear("a OK …")
}

func TestM1ALoginAtAHangingBackendEndsAtTheBackendsDeadline(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), expired, func(s *setup) { // the client's own deadline is over before
		s.routes.Static.Users["hang"] = "east"
		east := s.backends["east"]
		east.LoginTimeout = 500 * time.Millisecond
		s.backends["east"] = east
	})
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.greeted(listener)
		c.say("a LOGIN hang right\r\n")
		c.hear("a " + unavailableReply)
		c.hear("* BYE Login took too long.")
		c.end()
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(audit.BackendTimeout) {
			t.Error(r)
		}
		if r := b.lastRecord("connection_refused", c); r.field("reason") != string(audit.PreauthTimeout) {
			t.Error(r)
		}
	}
	within(t, "the upstream connections to close", func() bool { return m.open() == 0 })
}

func TestM2AClientThatIsGoneHoldsNothingLongerThanTheBackendsTime(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) {
		s.routes.Static.Users["hang"] = "east"
		east := s.backends["east"]
		east.LoginTimeout = 500 * time.Millisecond
		s.backends["east"] = east
	})
	for _, listener := range []string{"none", "implicit"} {
		c := b.greeted(listener)
		c.say("a LOGIN hang right\r\n")
		<-m.held
		c.vanish()
	}
	within(t, "everything to be given back", func() bool { return m.open() == 0 && b.server.open.Load() == 0 })
	if r := b.wantRecord("login_refused", audit.BackendTimeout); r.field("user") != "hang@example.org" {
		t.Error(r)
	}
}

func TestM3WhenABackendDiesItsClientsSeeItAtOnce(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr())
	var clients []*client
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.greeted(listener)
		c.say("a LOGIN alice right\r\n")
		c.hear("a OK …")
		clients = append(clients, c)
	}
	m.close()
	for _, c := range clients {
		c.end()
	}
	c := b.greeted("none")
	c.say("a LOGIN alice right\r\n")
	c.hear("a " + unavailableReply)
}

func TestM4NobodyGetsInWithoutARecord(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr())
	b.blind = true
	c := b.greeted("none")
	must(t, b.rooms.Audit.Close())
	c.say("a LOGIN alice right\r\n")
	c.hear("a " + unavailableReply)
	if m.open() > 0 {
		t.Error("the backend was asked")
	}
}

func TestM5AFaultOfOursEndsOneClientAndIsOnRecord(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.rooms = func(r *Rooms) { r.Routes = nil } })
	other := b.greeted("none")
	c := b.greeted("none")
	c.say("a LOGIN carol right\r\n") // whose route is looked up where nothing is
	c.end()
	b.faults = 1
	if r := b.lastRecord("login_refused", c); r.field("reason") != string(audit.InternalMistake) || r.field("user") != "carol@example.org" {
		t.Error(r)
	}
	if r := b.lastRecord("connection_refused", c); r.field("reason") != string(audit.InternalMistake) {
		t.Error(r)
	}
	if !strings.Contains(b.logs.String(), "proxy.(*session).connect") {
		t.Error("the log does not say where")
	}
	other.say("a NOOP\r\nb LOGIN frank wrong\r\n")
	other.hear("a OK …")
	other.hear("b " + deniedReply)
}

func TestDrainSaysByeBeforeTheLoginAndWaitsBehindIt(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) {
		s.cfg.Drain = 3 * time.Second
		s.routes.Static.Users["hang"] = "east"
		s.server = func(srv *Server) { srv.floor = time.Minute } // a denial is on its way until the gateway stops
	})
	var told []*client
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.greeted(listener) // idle
		told = append(told, c)
		c = b.greeted(listener)
		c.say("a AUTHENTICATE LOGIN YWxpY2U=\r\n")
		c.hear("+ …")
		told = append(told, c)
		c = b.greeted(listener)
		c.say("a LOGIN frank wrong\r\n") // a denial on its way
		told = append(told, c)
	}
	hanging := b.greeted("implicit")
	hanging.say("a LOGIN hang right\r\n")
	told = append(told, hanging)
	<-m.held
	mute := []*client{b.dial("implicit"), b.dial("balanced-implicit"), b.dial("balanced-none")}
	session := b.greeted("implicit")
	session.say("a LOGIN alice right\r\n")
	session.hear("a OK …")
	leaving := b.greeted("none")
	leaving.say("a LOGIN alice right\r\n")
	leaving.hear("a OK …")
	within(t, "all to be under way", func() bool {
		return b.server.open.Load() == int64(len(told)+len(mute)+2) && b.server.Sessions() == 2
	})

	began := time.Now()
	b.stop()
	for _, c := range told {
		c.hear("* BYE [UNAVAILABLE] Server is going down.")
		c.end()
	}
	for _, c := range mute[:2] { // TLS has not begun: a word in the clear would be none
		c.end()
	}
	mute[2].hopeless("* OK")
	if !b.server.Draining() || b.server.Sessions() != 2 {
		t.Errorf("draining %v, %d sessions", b.server.Draining(), b.server.Sessions())
	}
	leaving.close()
	session.say("b NOOP\r\n")
	session.hear("b OK Done.")
	session.end()
	b.end()
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("it took %v", took)
	}
	for c, why := range map[*client]audit.Reason{session: audit.Drained, leaving: audit.ClientClosed} {
		if r := b.lastRecord("session_ended", c); r.field("reason") != string(why) {
			t.Errorf("%v, want %s", r, why)
		}
	}
	for _, c := range append(told, mute...) {
		if r := b.lastRecord("connection_refused", c); r.field("reason") != string(audit.GatewayStopping) {
			t.Error(r)
		}
	}
	if r := b.lastRecord("login_refused", hanging); r.field("reason") != string(audit.GatewayStopping) {
		t.Error(r)
	}
}

// Clients that are all sent away at once come to the next gateway at once.
func TestADrainEndsQuietSessionsOneAfterTheOther(t *testing.T) {
	const sessions = 10
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) { s.cfg.Drain = 3 * time.Second })
	ends := make(chan time.Time, sessions+1)
	for range sessions {
		c := b.greeted("implicit")
		c.say("a LOGIN alice right\r\n")
		c.hear("a OK …")
		go func() {
			_, _ = c.r.ReadByte() // waits for the end
			ends <- time.Now()
		}()
	}
	busy := b.greeted("none")
	busy.say("a LOGIN alice right\r\n")
	busy.hear("a OK …")
	b.stop()
	within(t, "the drain", b.server.Draining)
	began := time.Now()
	for b.server.Sessions() > 1 {
		if _, err := io.WriteString(busy.nc, "b NOOP\r\n"); err != nil { // never quiet
			break
		}
		if _, err := busy.r.ReadString('\n'); err != nil {
			break
		}
	}
	if past := time.Since(began); past < 2*time.Second {
		t.Errorf("all quiet sessions had ended after %v", past)
	}
	b.end()
	first := <-ends
	for range sessions - 2 {
		<-ends
	}
	if spread := (<-ends).Sub(first); spread < time.Second {
		t.Errorf("all ended within %v", spread)
	}
}

func TestTheHerdThatADrainSendsAwayIsSmall(t *testing.T) {
	const drain = 30 * time.Second
	for _, c := range []struct {
		n                 int
		past              time.Duration
		spliced, followed int
	}{
		{1, 0, 1, 0},
		{1, drain - 1, 1, 0},
		{100, 0, 100, 0}, // followed ones that are no herd go at once
		{100, drain / 2, 50, 0},
		{1000, 0, 1000, 900},
		{1000, time.Second, 967, 800},
		{27_000, 0, 27_000, 26_900},
		{27_000, 10 * time.Second, 18_000, 17_000},
		{27_000, drain * 9 / 10, 2700, 0},
		{27_000, drain, 0, 0},
		{500_000, drain / 2, 250_000, 222_223},
	} {
		if spliced, followed := keepSpliced(c.n, c.past, drain), keepFollowed(c.n, c.past, drain); spliced != c.spliced || followed != c.followed {
			t.Errorf("%d after %v: %d and %d, want %d and %d", c.n, c.past, spliced, followed, c.spliced, c.followed)
		}
	}
	if n := keepSpliced(10_000_000, 12*time.Hour, 24*time.Hour); n != 5_000_000 {
		t.Errorf("many, and for long: %d", n)
	}
	if spliced, followed := keepSpliced(5, 0, 0), keepFollowed(5, 0, 0); spliced+followed != 0 {
		t.Errorf("without a drain: %d, %d", spliced, followed)
	}
}

func TestDrainEndsWhenTheLastSessionDoes(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.Drain = time.Minute })
	c := b.greeted("none")
	c.say("a LOGIN alice right\r\n")
	c.hear("a OK …")
	b.stop()
	within(t, "the drain", b.server.Draining)
	c.close()
	b.end() // within its own limit
}

func TestTheLineOfASessionHasTheSameKeysHoweverItEnds(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	for _, say := range []string{"", "b LOGOUT\r\n"} {
		c := b.greeted("none")
		c.say("a LOGIN alice right\r\n" + say)
		c.hear("…")
		c.close()
	}
	within(t, "their lines", func() bool { return strings.Count(b.logs.String(), `"msg":"session"`) == 2 })
	lines := 0
	for line := range strings.Lines(b.logs.String()) {
		var fields map[string]any
		must(t, json.Unmarshal([]byte(line), &fields))
		if fields["msg"] != "session" {
			continue
		}
		lines++
		for _, key := range []string{"session", "user", "backend", "mode", "stage", "bytes", "dur", "err"} {
			if _, there := fields[key]; !there {
				t.Errorf("no %s in %s", key, line)
			}
		}
	}
	if lines != 2 {
		t.Errorf("%d lines of two sessions:\n%s", lines, b.logs)
	}
}
