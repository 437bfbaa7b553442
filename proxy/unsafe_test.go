package proxy

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// unsafe is a backend of the Coremail kind: no mailbox is selected on a connection
// whose client has not said what it is.
type unsafe struct {
	// Set once.
	l  net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // Guarded by mu.
	made  int               // Guarded by mu. Connections so far.
}

func openUnsafe(t testing.TB) *unsafe {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	u := &unsafe{l: l, conns: map[net.Conn]bool{}}
	u.wg.Go(u.accept)
	t.Cleanup(func() {
		_ = l.Close()
		u.cut()
		u.wg.Wait()
	})
	return u
}

// accept ends with the listener.
func (u *unsafe) accept() {
	for {
		nc, err := u.l.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.conns[nc] = true
		u.made++
		u.mu.Unlock()
		u.wg.Go(func() { u.serve(nc) })
	}
}

// cut ends all connections.
func (u *unsafe) cut() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for nc := range u.conns {
		_ = nc.Close()
	}
	clear(u.conns)
}

func (u *unsafe) logins() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.made
}

// serve ends with the connection.
func (u *unsafe) serve(nc net.Conn) {
	defer func() { _ = nc.Close() }()
	s := newUpstreamSide(nc)
	login, err := s.login()
	if err != nil || s.say(login.tag+" OK [CAPABILITY IMAP4rev1 ID UNSELECT] In.") != nil {
		return
	}
	known := strings.Contains(login.id, `"name"`)
	for {
		line, err := s.line()
		if err != nil {
			return
		}
		tag, command, _ := strings.Cut(line, " ")
		answer := "OK Done."
		switch {
		case strings.HasPrefix(command, `ID ("name"`):
			known = true
			_ = s.say(`* ID ("name" "Coremail")`)
		case strings.HasPrefix(command, "SELECT") && !known:
			answer = "NO SELECT Unsafe Login. Please contact the postmaster for help"
		case strings.HasPrefix(command, "SELECT"):
			_ = s.say("* FLAGS (\\Seen)\r\n* 0 EXISTS\r\n* OK [UIDVALIDITY 7] .\r\n* OK [UIDNEXT 1] .")
			answer = "OK [READ-WRITE] Selected."
		}
		if s.say(tag+" "+answer) != nil || command == "LOGOUT" {
			return
		}
	}
}

const (
	unsafeSays = "s NO SELECT Unsafe Login…"
	opened     = "s OK [READ-WRITE] Selected."
)

// wantSelected has a client select its mailbox.
func (c *client) wantSelected(how string) {
	c.t.Helper()
	c.say("s SELECT INBOX\r\n")
	if how == opened {
		for _, line := range []string{"* FLAGS (\\Seen)", "* 0 EXISTS", "* OK [UIDVALIDITY 7] .", "* OK [UIDNEXT 1] ."} {
			c.hear(line)
		}
	}
	c.hear(how)
}

func TestAClientIsIntroducedWheneverItSaysID(t *testing.T) {
	for _, mode := range []string{spliceMode, string(mux.Reuse), string(mux.Resume)} {
		t.Run(mode, func(t *testing.T) {
			u := openUnsafe(t)
			b := newBed(t, u.l.Addr().String(), func(s *setup) {
				s.cfg.Modes = map[string]Mode{"east": {Name: mode, Mux: mux.Settings{HoldMax: 20 * time.Second, ReuseTTL: time.Hour}}}
				s.backends["east"] = upstream.Config{Address: u.l.Addr().String(), TLSMode: upstream.NoTLS, Forward: upstream.ForwardNone}
			})
			before := b.greeted("none")
			before.say("i ID (\"name\" \"Early\" \"version\" \"1.0\" \"x-session-id\" \"s\")\r\n")
			before.hear("* ID …")
			before.hear("i OK …")
			before.say("a LOGIN alice right\r\n")
			before.hear("a OK …")
			before.wantSelected(opened)
			b.survives(before, u, mode)

			after := b.greeted("none")
			after.say("a LOGIN frank right\r\n")
			after.hear("a OK …")
			after.wantSelected(unsafeSays)
			after.say("i ID (\"name\" \"Late\" \"version\" \"2.0\")\r\n")
			after.hear(`* ID ("name" "Coremail")`)
			after.hear("i OK …")
			after.wantSelected(opened)
			b.survives(after, u, mode)

			if r := b.lastRecord("login_accepted", before); r.field("program") != "Early" || r.field("program_version") != "1.0" {
				t.Errorf("%v", r)
			}
			late := map[bool]string{false: "Late 2.0", true: " "}[mode == spliceMode] // there nobody reads it
			for c, want := range map[*client]string{before: "Early 1.0", after: late} {
				if r := b.lastRecord("session_ended", c); r.field("program")+" "+r.field("program_version") != want {
					t.Errorf("want %q: %v", want, r)
				}
			}
		})
	}
}

// survives has a client lose its backend's connection, and wants it to go on, where it
// can, as one that is known.
func (b *bed) survives(c *client, u *unsafe, mode string) {
	b.t.Helper()
	defer c.close()
	made := u.logins()
	u.cut()
	if mode != string(mux.Resume) {
		return
	}
	c.say("n NOOP\r\n")
	c.hear("n OK Done.")
	c.wantSelected(opened)
	if u.logins() == made {
		b.t.Error("the connection was not lost")
	}
}

// What is said in the clear is forgotten when TLS begins, on record too.
func TestAnIDInTheClearIsNotOnRecord(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	c := b.dial("starttls")
	c.hear("* OK …")
	c.say("i ID (\"name\" \"Forged\" \"version\" \"1\")\r\n")
	c.hear("* ID …")
	c.hear("i OK …")
	c.say("t STARTTLS\r\n")
	c.hear("t OK …")
	c.startTLS()
	c.say("a LOGIN alice right\r\n")
	c.hear("a OK …")
	c.close()
	if r := b.lastRecord("session_ended", c); r.field("program") != "" || r.field("program_version") != "" {
		t.Errorf("%v", r)
	}
}
