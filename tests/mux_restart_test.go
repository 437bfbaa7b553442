package tests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// inn is a gateway before a Dovecot that can be away, and its guests.
type inn struct {
	// Set once.
	*testing.T
	backend mailServer
	door    *faultproxy.Proxy // on the gateway's way to the backend
	muted   *faultproxy.Proxy // another way, for users in deaf
	g       *running
	film    []byte

	mu     sync.Mutex
	guests []*guest // Guarded by mu.
}

// guest is a client that is in the middle of something when the backend ends.
type guest struct {
	// Set once.
	*RawClient
	user string
	wake func(*guest) error // what it does when the backend is back
	tag  string             // of the command it is in
}

const (
	families = 20        // users who have guests at rest
	slept    = 3         // messages each of them has
	deaf     = "deaf"    // users whose answers are withheld
	famous   = "famous"  // has a large message
	part     = 512 << 10 // of a message that is being stored
)

// innUsers are all who may come.
func innUsers() []string {
	all := []string{famous}
	for i := range families {
		for _, who := range []string{"family", "patient", "hasty", deaf} {
			all = append(all, fmt.Sprint(who, i))
		}
	}
	return all
}

// openInn starts all and fills the mailboxes.
func openInn(t *testing.T) *inn {
	t.Helper()
	h := &inn{T: t, film: attachment(40 << 20)}
	h.backend = startMail(t, innUsers()...)
	h.door, h.muted = faultproxy.Start(t, h.backend.Where().TLS), faultproxy.Start(t, h.backend.Where().TLS)
	open, muted := to(h.backend, upstream.ImplicitTLS), to(h.backend, upstream.ImplicitTLS)
	open.Address, muted.Address = h.door.Address(), h.muted.Address()
	users := map[string]string{}
	for i := range families {
		users[fmt.Sprint(deaf, i)] = "muted"
	}
	settings := muxSettings()
	settings.HoldMax = 4 * testbed.Patience // all come back at once, to processes that have yet to start
	mode := proxy.Mode{Name: string(mux.Resume), Mux: settings}
	h.g = startGateway(t, options{
		ca: h.backend.Where().CA, backends: map[string]upstream.Config{only: open, "muted": muted},
		modes:   map[string]proxy.Mode{only: mode, "muted": mode},
		routing: routing.Config{Static: routing.Static{Users: users}},
	})
	h.each(func(user string) error {
		return h.directly(user, func(c *RawClient) error {
			for i := range slept {
				if err := okay(c.Do("APPEND INBOX {+}", mail(fmt.Sprint("before ", i+1)))); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return h
}

// each calls do for every family at once.
func (h *inn) each(do func(user string) error) {
	h.Helper()
	var all errgroup.Group
	for i := range families {
		all.Go(func() error { return do(fmt.Sprint("family", i)) })
	}
	if err := all.Wait(); err != nil {
		h.Fatal(err)
	}
}

// directly is a session at the backend itself.
func (h *inn) directly(user string, do func(*RawClient) error) error {
	c, err := reach(directly(h.backend)(h, user), "")
	if err != nil {
		return err
	}
	defer c.Close() // it has logged out
	if err := okay(c.Do("LOGIN " + user + " " + password)); err != nil {
		return err
	}
	if err := do(c); err != nil {
		return fmt.Errorf("%s: %w", user, err)
	}
	return okay(c.Do("LOGOUT"))
}

// okay wants a command to be answered OK.
func okay(got []Response, err error) error {
	if err != nil {
		return err
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " OK ") {
		return errors.New(last)
	}
	return nil
}

// admit logs a guest in and lets it begin; wake is what it does later.
func (h *inn) admit(user string, begin func(*guest) error, wake func(*guest) error) error {
	c, err := reach(h.g.at(proxy.ImplicitTLS), "")
	if err != nil {
		return err
	}
	g := &guest{RawClient: c, user: user, wake: wake}
	h.mu.Lock()
	h.guests = append(h.guests, g)
	h.mu.Unlock()
	if err := okay(c.Do("LOGIN " + user + " " + password)); err != nil {
		return err
	}
	return begin(g)
}

// fill admits n guests at rest, in each of the ways.
func (h *inn) fill(n int) {
	h.Helper()
	var all errgroup.Group
	all.SetLimit(16)
	for i := range n {
		way := rests[i%len(rests)]
		all.Go(func() error { return h.admit(fmt.Sprint("family", i/len(rests)%families), way.begin, way.wake) })
	}
	if err := all.Wait(); err != nil {
		h.Fatalf("let guests in: %v", err)
	}
}

// restart ends the backend and brings it back. Before the gateway sees it again,
// every family gets a letter, flags one and loses one.
func (h *inn) restart(end func(mailServer)) {
	h.Helper()
	for _, door := range []*faultproxy.Proxy{h.door, h.muted} {
		door.SetDoor(faultproxy.Closed)
	}
	end(h.backend)
	h.backend.Restart()
	h.each(func(user string) error {
		return h.directly(user, func(c *RawClient) error {
			return errors.Join(
				okay(c.Do("SELECT INBOX")),
				okay(c.Do(`STORE 1 +FLAGS.SILENT (\Deleted)`)), okay(c.Do("EXPUNGE")),
				okay(c.Do(`STORE 1 +FLAGS.SILENT (\Flagged)`)),
				okay(c.Do("APPEND INBOX {+}", mail("meanwhile"))),
			)
		})
	})
	for _, door := range []*faultproxy.Proxy{h.door, h.muted} {
		door.Reset()
		door.SetDoor(faultproxy.Open)
	}
}

// wake lets every guest go on.
func (h *inn) wake() {
	h.Helper()
	var all errgroup.Group
	for _, g := range h.guests {
		all.Go(func() error {
			defer g.Close() // it has logged out, or was left
			if err := g.wake(g); err != nil {
				return fmt.Errorf("%s: %w", g.user, err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		h.Error(err)
	}
}

// rests are the ways of having no command in flight.
var rests = []struct {
	begin, wake func(*guest) error
}{
	{ // in IDLE
		func(g *guest) (err error) {
			if err := okay(g.Do("SELECT INBOX")); err != nil {
				return err
			}
			if g.tag, err = g.Send("IDLE"); err != nil {
				return err
			}
			return g.goAhead()
		},
		func(g *guest) error {
			var heard []Response
			for !missed(heard, `* 1 EXPUNGE`) {
				r, err := g.Read()
				if err != nil {
					return fmt.Errorf("in IDLE, after %v: %w", heard, err)
				}
				heard = append(heard, r)
			}
			_, err := io.WriteString(g, "DONE\r\n")
			return errors.Join(err, okay(g.Until(g.tag)), okay(g.Do("LOGOUT")))
		},
	},
	{ // with a mailbox
		(*guest).opens,
		func(g *guest) error { return g.hears("NOOP", `* 1 EXPUNGE`) },
	},
	{ // with a mailbox, and extensions
		func(g *guest) error { return errors.Join(okay(g.Do("ENABLE QRESYNC")), okay(g.Do("SELECT INBOX"))) },
		func(g *guest) error { return g.hears("NOOP", `* VANISHED 1`) },
	},
	{ // without a mailbox
		func(*guest) error { return nil },
		func(g *guest) error {
			return errors.Join(okay(g.Do("NOOP")), okay(g.Do("STATUS INBOX (MESSAGES)")), okay(g.Do("LOGOUT")))
		},
	},
}

// hears sends a command whose answer must bring what was missed.
func (g *guest) hears(command, gone string) error {
	got, err := g.Do(command)
	if err := okay(got, err); err != nil {
		return fmt.Errorf("%s, after %v: %w", command, got, err)
	}
	if !missed(got, gone) {
		return fmt.Errorf("%s brought only %v", command, got)
	}
	return okay(g.Do("LOGOUT"))
}

// missed says whether responses tell all that happened while the backend was not
// to be seen.
func missed(heard []Response, gone string) bool {
	all := shown(heard)
	return strings.Contains(all, gone+"\n") && strings.Contains(all, "* 3 EXISTS\n") && strings.Contains(all, `\Flagged)`)
}

// endings are the ways in which a backend ends.
var endings = []struct {
	name string
	end  func(mailServer)
}{{"by TERM", mailServer.Stop}, {"by KILL", mailServer.Kill}}

// Two hundred clients rest, in every way, when their backend ends. Nobody is
// disconnected, and each hears of all that it has missed.
func TestNobodyAtRestIsDisconnectedByARestart(t *testing.T) {
	n := 200
	if testbed.HasCyrus() {
		n = 40 // each connection takes a process there, which needs much longer to start
	}
	for _, way := range endings {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			h := openInn(t)
			h.fill(n)
			h.restart(way.end)
			h.wake()
			h.leftBy(map[string]int{"client_logout": n})
			if lost := len(h.g.records("upstream_lost", "")); lost < n*3/4 {
				t.Errorf("%d upstreams were lost, of those of %d sessions", lost, n)
			}
		})
	}
}

// leftBy wants the guests' sessions to have ended so.
func (h *inn) leftBy(want map[string]int) {
	h.Helper()
	total := 0
	for _, n := range want {
		total += n
	}
	var got []record
	testbed.Within(h, testbed.Patience, "every session's end to be on record", func() bool {
		got = h.g.records("session_ended", "")
		return len(got) >= total
	})
	if counts := reasons(got); fmt.Sprint(counts) != fmt.Sprint(want) {
		h.Errorf("sessions ended by %v; want %v", counts, want)
	}
}

// A backend ends while some clients rest, some read, some store. Everybody gets
// what can be promised, and every message is there once.
func TestARestartLosesAndDoublesNoMessage(t *testing.T) {
	resting, busy := soaked(20, 160), soaked(4, 15)
	for _, way := range endings {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			h := openInn(t)
			if err := h.directly(famous, func(c *RawClient) error { return okay(c.Do("APPEND INBOX {+}", h.film)) }); err != nil {
				t.Fatal(err)
			}
			h.fill(resting)
			for i := range busy {
				for _, err := range []error{
					h.admit(famous, (*guest).startReading, h.readsToTheBreak),
					h.admit(fmt.Sprint("patient", i), beginStoring("{%d}"), storesAgain),
					h.admit(fmt.Sprint("hasty", i), beginStoring("{%d+}"), storesAgain),
					h.admit(fmt.Sprint(deaf, i), (*guest).opens, isLeftInDoubt),
				} {
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			h.storeUnanswered()
			h.restart(way.end)
			h.wake()
			h.leftBy(map[string]int{"client_logout": resting + 2*busy, "upstream_lost": 2 * busy})
			for i := range busy {
				for _, who := range []string{"patient", "hasty", deaf} {
					h.hasOne(fmt.Sprint(who, i))
				}
			}
		})
	}
}

// startReading asks for the film and reads its beginning.
func (g *guest) startReading() error {
	if err := g.opens(); err != nil {
		return err
	}
	if _, err := g.Send("FETCH 1 BODY.PEEK[]"); err != nil {
		return err
	}
	_, err := g.r.Peek(1)
	return err
}

// readsToTheBreak wants nothing but the film, up to a break.
func (h *inn) readsToTheBreak(g *guest) error {
	if err := g.conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	got, err := io.ReadAll(g.r)
	if err != nil && !isEnd(err) {
		return err
	}
	whole := append(fmt.Appendf(nil, "* 1 FETCH (BODY[] {%d}\r\n", len(h.film)), h.film...)
	if len(got) >= len(whole) || !bytes.HasPrefix(whole, got) {
		return fmt.Errorf("%d bytes of %d, which end in %q", len(got), len(whole), got[max(0, len(got)-80):])
	}
	return nil
}

// beginStoring sends the first half of a message, whose literal is announced so.
func beginStoring(literal string) func(*guest) error {
	return func(g *guest) error {
		if err := okay(g.Do("SELECT INBOX")); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(g, "x APPEND INBOX "+literal+"\r\n", 2*part); err != nil {
			return err
		}
		if !strings.Contains(literal, "+") {
			if err := g.goAhead(); err != nil {
				return err
			}
		}
		_, err := g.Write(mailOf(2*part, g.user)[:part])
		return err
	}
}

// storesAgain sends the rest, hears that nothing was stored, and does it again.
func storesAgain(g *guest) error {
	if _, err := g.Write(append(mailOf(2*part, g.user)[part:], "\r\n"...)); err != nil {
		return err
	}
	got, err := g.Until("x")
	if err != nil || !strings.HasPrefix(got[len(got)-1].Text, "x NO [UNAVAILABLE] ") {
		return fmt.Errorf("half of an APPEND was answered %v, %w", got, err)
	}
	return errors.Join(okay(g.Do("APPEND INBOX {}", mailOf(2*part, g.user))), okay(g.Do("LOGOUT")))
}

// storeUnanswered lets the deaf store messages whose OK does not arrive.
func (h *inn) storeUnanswered() {
	h.Helper()
	h.muted.Set(faultproxy.ToClient, faultproxy.Rules{Faults: []faultproxy.Fault{{Do: faultproxy.Blackhole}}})
	for _, g := range h.guests {
		if !strings.HasPrefix(g.user, deaf) {
			continue
		}
		if _, err := g.Send("APPEND INBOX {+}", mail(g.user)); err != nil {
			h.Fatal(err)
		}
		testbed.Within(h, Patience, "a message to be stored", func() bool { return h.count(g.user) == 1 })
	}
}

func (g *guest) opens() error { return okay(g.Do("SELECT INBOX")) }

// isLeftInDoubt wants a goodbye that claims nothing.
func isLeftInDoubt(g *guest) error {
	const bye = "* BYE [UNAVAILABLE] Connection to mail store lost."
	if r, err := g.Read(); err != nil || r.Text != bye {
		return fmt.Errorf("an APPEND whose outcome nobody knows was answered %v, %w", r, err)
	}
	return untilEnd(g.RawClient)
}

// count is how many messages in INBOX have the user's name as their subject.
func (h *inn) count(user string) (n int) {
	err := h.directly(user, func(c *RawClient) error {
		if err := okay(c.Do("EXAMINE INBOX")); err != nil {
			return err
		}
		got, err := c.Do("FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]")
		for _, r := range got {
			for _, header := range r.Literals {
				if strings.TrimSpace(string(header)) == "Subject: "+user {
					n++
				}
			}
		}
		return err
	})
	if err != nil {
		h.Error(err)
	}
	return n
}

func (h *inn) hasOne(user string) {
	h.Helper()
	if n := h.count(user); n != 1 {
		h.Errorf("%s has %d messages, of 1", user, n)
	}
}
