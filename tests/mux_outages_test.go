package tests

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// outage is a gateway in mode resume before a Dovecot that is away for a while, and
// clients that go on with what they do.
type outage struct {
	// Set once.
	*testing.T
	backend  *testbed.Dovecot
	door     *faultproxy.Proxy
	g        *running
	sessions int
	hold     time.Duration

	back   chan struct{}             // closed when the backend is there again
	backAt atomic.Pointer[time.Time] // nil until then

	mu   sync.Mutex
	ends map[string]int // Guarded by mu. Sessions by how they ended.
}

// How a session ends in an outage: by its own LOGOUT, or as the loss table says. The
// last one is in no table.
const (
	endsItself  = "itself"
	endsPartial = "in the middle of a message"
	endsInDoubt = "with an outcome nobody knows"
	endsWaiting = "with a command that has waited for command_hold_timeout"
	endsForNone = "for nothing"
)

// outages are the ways in which a backend goes away and comes back.
var outages = []struct {
	name     string
	everyDay bool // is part of every run of the tests
	happen   func(o *outage)
}{
	{"stop and start", true, func(o *outage) { o.backend.Stop(); o.backend.Restart() }},
	{"kill of all", false, func(o *outage) { o.backend.Kill(); o.backend.Restart() }},
	{"kill of the master", false, func(o *outage) { o.signal(o.backend.PID(), syscall.SIGKILL); o.lasts(time.Second); o.backend.Restart() }},
	{"reload", false, func(o *outage) { o.signal(o.backend.PID(), syscall.SIGHUP) }},
	{"stopped for 20 s", false, func(o *outage) {
		o.signal(-o.backend.PID(), syscall.SIGSTOP)
		o.lasts(20 * time.Second)
		o.signal(-o.backend.PID(), syscall.SIGCONT)
	}},
	{"RST", true, func(o *outage) { o.door.Reset() }},
	{"black hole for 8 s", false, func(o *outage) {
		lost := faultproxy.Rules{Faults: []faultproxy.Fault{{Do: faultproxy.Blackhole}}}
		o.door.SetDoor(faultproxy.Mute)
		o.door.Set(faultproxy.ToClient, lost)
		o.door.Set(faultproxy.ToTarget, lost)
		o.lasts(8 * time.Second)
		o.door.Reset()
		o.door.Set(faultproxy.ToClient, faultproxy.Rules{})
		o.door.Set(faultproxy.ToTarget, faultproxy.Rules{})
		o.door.SetDoor(faultproxy.Open)
	}},
	{"8 s down", false, func(o *outage) { o.backend.Stop(); o.lasts(8 * time.Second); o.backend.Restart() }},
	{"25 s down", false, func(o *outage) { o.backend.Stop(); o.lasts(25 * time.Second); o.backend.Restart() }},
	{"refusal for 5 s", false, func(o *outage) { o.away(faultproxy.Closed, 5*time.Second) }},
	{"silence for 5 s", false, func(o *outage) { o.away(faultproxy.Mute, 5*time.Second) }},
}

// Sessions end in an outage of their backend where the loss table says so, and
// nowhere else. No message is lost, and none is there twice.
func TestAnOutageEndsNoSessionForNothing(t *testing.T) {
	for _, way := range outages {
		if !way.everyDay && soaked(0, 1) == 0 {
			continue
		}
		t.Run(way.name, func(t *testing.T) {
			if testbed.HasCyrus() {
				t.Skip("signals are sent to Dovecot's processes")
			}
			o := openOutage(t, soaked(20, 100))
			var clients errgroup.Group
			busy := sync.WaitGroup{}
			for i := range o.sessions {
				busy.Add(1)
				clients.Go(func() error { return o.client(i, busy.Done) })
			}
			busy.Wait() // each has done something
			way.happen(o)
			now := time.Now()
			o.backAt.Store(&now)
			close(o.back)
			if err := clients.Wait(); err != nil {
				t.Error(err)
			}
			t.Logf("%d sessions ended %v", o.sessions, o.ends)
			if n := o.ends[endsForNone]; n > 0 {
				t.Errorf("%d of %d sessions ended for nothing", n, o.sessions)
			}
		})
	}
}

func openOutage(t *testing.T, sessions int) *outage {
	t.Helper()
	o := &outage{T: t, sessions: sessions, hold: 10 * time.Second, back: make(chan struct{}), ends: map[string]int{}}
	o.backend = testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	o.door = faultproxy.Start(t, o.backend.Where().TLS)
	path := to(o.backend, upstream.ImplicitTLS)
	path.Address = o.door.Address()
	settings := muxSettings()
	settings.HoldMax = o.hold
	o.g = startGateway(t, options{
		ca: o.backend.CA, backends: map[string]upstream.Config{only: path},
		modes: map[string]proxy.Mode{only: {Name: string(mux.Resume), Mux: settings}},
	})
	return o
}

func (o *outage) signal(pid int, s syscall.Signal) {
	if err := syscall.Kill(pid, s); err != nil {
		o.Error(err)
	}
}

// lasts lets the outage go on.
func (o *outage) lasts(d time.Duration) { <-time.After(d) }

// away ends all connections, and then the backend's door is as given.
func (o *outage) away(door faultproxy.Door, d time.Duration) {
	o.door.SetDoor(door)
	o.door.Reset()
	o.lasts(d)
	o.door.Reset()
	o.door.SetDoor(faultproxy.Open)
}

// What the clients do: each of these over and over, until the backend is back.
var pastimes = []struct {
	name string
	do   func(o *outage, c *pastimer) error
}{
	{"idles", (*outage).idles}, {"polls", (*outage).polls}, {"idles", (*outage).idles}, {"reads", (*outage).reads}, {"idles", (*outage).idles},
	{"stores", (*outage).stores}, {"idles", (*outage).idles}, {"lists", (*outage).lists}, {"rests", (*outage).rests}, {"polls", (*outage).polls},
}

// pastimer is one client.
type pastimer struct {
	*RawClient
	user    string
	began   func()         // it has done something
	stored  map[string]int // how its uploads were answered: 1 stored, 0 not, -1 nobody knows
	partial bool           // of the answer that is being read, some is there
	sent    time.Time      // of the last command
	doubt   bool           // the last command must not be repeated
}

// client is the life of one.
func (o *outage) client(i int, began func()) error {
	began = sync.OnceFunc(began)
	defer began()
	way := pastimes[i%len(pastimes)]
	raw, err := reach(o.g.at(proxy.ImplicitTLS), "")
	if err != nil {
		return err
	}
	c := &pastimer{RawClient: raw, user: fmt.Sprint(way.name, i), began: began, stored: map[string]int{}}
	defer c.Close() // it has logged out, or was left
	letter := mail("first")
	if way.name == "reads" {
		letter = mailOf(8<<20, "first")
	}
	for _, err := range []error{
		okay(c.Do("LOGIN " + c.user + " " + password)), okay(c.Do("APPEND INBOX {+}", letter)),
	} {
		if err != nil {
			return fmt.Errorf("%s: %w", c.user, err)
		}
	}
	if way.name != "lists" {
		if err := okay(c.Do("SELECT INBOX")); err != nil {
			return err
		}
	}
	err = way.do(o, c)
	if err == nil {
		err = okay(c.Do("LOGOUT"))
	}
	how := o.judge(c, err)
	o.mu.Lock()
	o.ends[how]++
	o.mu.Unlock()
	if how == endsForNone {
		o.Logf("%s: %v", c.user, err)
	}
	<-o.back
	return o.audit(c)
}

// judge says how a session ended.
func (o *outage) judge(c *pastimer, err error) string {
	switch {
	case err == nil:
		return endsItself
	case c.partial:
		return endsPartial
	case strings.Contains(err.Error(), "Connection to mail store lost") && c.doubt:
		return endsInDoubt
	case strings.Contains(err.Error(), "Mail store is away") && o.hasWaited(c):
		return endsWaiting
	}
	return endsForNone
}

// hasWaited says whether the last command waited for command_hold_timeout while the backend was
// away.
func (o *outage) hasWaited(c *pastimer) bool {
	back := o.backAt.Load()
	return back == nil || back.Sub(c.sent) > o.hold
}

// ask sends a command and reads its answer. A BYE is an error.
func (c *pastimer) ask(command string, literals ...[]byte) ([]Response, error) {
	c.sent = time.Now()
	tag, err := c.Send(command, literals...)
	var refused *Refused
	if errors.As(err, &refused) && strings.HasPrefix(refused.Response.Text, tag+" ") {
		return []Response{refused.Response}, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Response
	for {
		if _, err := c.r.Peek(1); err == nil {
			c.partial = true
		}
		r, err := c.Read()
		if err != nil {
			return all, err
		}
		c.partial = false
		all = append(all, r)
		switch {
		case strings.HasPrefix(r.Text, "* BYE"):
			return all, errors.New(r.Text)
		case strings.HasPrefix(r.Text, tag+" "):
			c.began()
			return all, nil
		}
	}
}

// again calls do until the backend is back, and once more.
func (o *outage) again(pause time.Duration, do func() error) error {
	for over := false; ; {
		if err := do(); err != nil || over {
			return err
		}
		select {
		case <-o.back:
			over = true
		case <-time.After(pause):
		}
	}
}

func (o *outage) polls(c *pastimer) error {
	return o.again(200*time.Millisecond, func() error { return okay(c.ask("NOOP")) })
}

func (o *outage) reads(c *pastimer) error {
	return o.again(0, func() error { return okay(c.ask("FETCH 1 BODY.PEEK[]")) })
}

// lists has no mailbox: what waits too long is refused, and it goes on.
func (o *outage) lists(c *pastimer) error {
	return o.again(200*time.Millisecond, func() error {
		got, err := c.ask(`LIST "" *`)
		if err == nil && strings.Contains(shown(got), "NO [UNAVAILABLE]") && o.hasWaited(c) {
			return nil
		}
		return okay(got, err)
	})
}

func (o *outage) rests(c *pastimer) error {
	c.began()
	<-o.back
	return okay(c.ask("NOOP"))
}

// idles until it hears of a message that came when the backend was back.
func (o *outage) idles(c *pastimer) error {
	c.sent = time.Now()
	tag, err := c.Send("IDLE")
	if err == nil {
		err = c.goAhead()
	}
	if err != nil {
		return err
	}
	c.began()
	<-o.back
	c.sent = time.Now()
	if err := o.deliver(c.user); err != nil {
		return err
	}
	for {
		r, err := c.Read()
		switch {
		case err != nil:
			return fmt.Errorf("in IDLE: %w", err)
		case strings.HasPrefix(r.Text, "* BYE"):
			return errors.New(r.Text)
		case r.Text == "* 2 EXISTS":
			_, err := io.WriteString(c, "DONE\r\n")
			return errors.Join(err, okay(c.Until(tag)))
		}
	}
}

// deliver stores a message at the backend itself, which may not be quite there yet.
func (o *outage) deliver(user string) (err error) {
	for range 300 {
		var c *RawClient
		if c, err = reach(directly(o.backend)(o, user), ""); err == nil {
			err = okay(c.Do("LOGIN " + user + " " + password))
			if err == nil {
				err = okay(c.Do("APPEND INBOX {+}", mail("second")))
			}
			_ = c.Close() // the message is there, or is not
		}
		if err == nil {
			return nil
		}
		o.lasts(100 * time.Millisecond)
	}
	return fmt.Errorf("deliver to %s: %w", user, err)
}

// stores one message after the other.
func (o *outage) stores(c *pastimer) error {
	n := 0
	return o.again(10*time.Millisecond, func() error {
		n++
		subject := fmt.Sprint("upload ", n)
		c.doubt, c.stored[subject] = true, -1
		got, err := c.ask("APPEND INBOX {}", mailOf(64<<10, subject))
		c.doubt = err != nil
		switch {
		case err != nil:
			return err
		case strings.Contains(got[len(got)-1].Text, " NO [UNAVAILABLE]"):
			c.stored[subject] = 0
			return nil
		}
		c.stored[subject] = 1
		return okay(got, err)
	})
}

// audit compares what a client has stored with what is there.
func (o *outage) audit(c *pastimer) error {
	if len(c.stored) == 0 {
		return nil
	}
	direct, err := reach(directly(o.backend)(o, c.user), "")
	if err != nil {
		return err
	}
	defer direct.Close() // it is for reading
	if err := errors.Join(okay(direct.Do("LOGIN "+c.user+" "+password)), okay(direct.Do("EXAMINE INBOX"))); err != nil {
		return err
	}
	got, err := direct.Do("FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]")
	if err != nil {
		return err
	}
	there := map[string]int{}
	for _, r := range got {
		for _, header := range r.Literals {
			there[strings.TrimPrefix(strings.TrimSpace(string(header)), "Subject: ")]++
		}
	}
	for subject, answered := range c.stored {
		if n := there[subject]; answered >= 0 && n != answered || n > 1 {
			err = errors.Join(err, fmt.Errorf("%s: %q is there %d times, and was answered as if %d", c.user, subject, n, answered))
		}
	}
	return err
}

// The process behind one session hangs, as the kernel sees it alive and well. The
// session's client gets its answer all the same, and in IDLE its end.
func TestAProcessThatHangsIsNoticed(t *testing.T) {
	if testbed.HasCyrus() {
		t.Skip("the process of a session is found in Dovecot's log")
	}
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	settings := muxSettings()
	settings.SilenceMax = 2 * time.Second
	settings.Consistent = false // so that the last login is the session's
	g := startGateway(t, options{
		ca: backend.CA, backends: map[string]upstream.Config{only: to(backend, upstream.ImplicitTLS)},
		modes: map[string]proxy.Mode{only: {Name: string(mux.Resume), Mux: settings}},
	})
	c, err := reach(g.at(proxy.ImplicitTLS), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // it has logged out
	ask := func(command string) {
		t.Helper()
		if err := okay(c.Do(command)); err != nil {
			t.Fatal(err)
		}
	}
	ask("LOGIN hung " + password)
	ask("SELECT INBOX")
	hang := func() {
		t.Helper()
		logins := backend.Logins("hung")
		_, rest, _ := strings.Cut(logins[len(logins)-1], "mpid=")
		var pid int
		if _, err := fmt.Sscan(strings.TrimRight(strings.Fields(rest)[0], ","), &pid); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // it may have been killed
	}
	for i, command := range []string{"NOOP", "SELECT INBOX"} {
		hang()
		ask(command)
		if n := len(g.records("upstream_lost", "hung")); n != i+1 {
			t.Errorf("behind %s %d upstreams were lost, want %d", command, n, i+1)
		}
	}
}

// Sessions of one user that all open a mailbox at once, of which Dovecot keeps no
// mod-sequences yet and which has more messages than flags are told of, all survive a
// loss.
func TestSixSessionsInALargeMailboxSurviveALoss(t *testing.T) {
	if soaked(0, 1) == 0 {
		t.Skipf("it waits for 12 s; set %s=1", soak)
	}
	o := openOutage(t, 6)
	first := enter(t, o.g.at(proxy.ImplicitTLS), "")
	mustSay(t, first, "LOGIN six "+password)
	messages := muxSettings().WithDefaults().FlagsFullMax + 500
	var literals [][]byte
	for i := range messages {
		literals = append(literals, mailOf(100, fmt.Sprint("number ", i)))
	}
	if err := okay(first.Do("APPEND INBOX"+strings.Repeat(" {+}", messages), literals...)); err != nil {
		t.Fatal(err)
	}
	all := []*RawClient{first}
	for range o.sessions - 1 {
		c := enter(t, o.g.at(proxy.ImplicitTLS), "")
		mustSay(t, c, "LOGIN six "+password)
		all = append(all, c)
	}
	for _, c := range all {
		mustSay(t, c, "SELECT INBOX")
	}
	o.lasts(12 * time.Second)
	for _, c := range all {
		mustSay(t, c, "NOOP")
	}
	o.door.Reset()
	for i, c := range all {
		if err := okay(c.Do("NOOP")); err != nil {
			t.Errorf("session %d: %v", i, err)
		}
	}
}
