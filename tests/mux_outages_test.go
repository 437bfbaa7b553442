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

	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/settings"
	"imapgate/internal/testbed"
	"imapgate/proxy/relay/mux"
)

// outageTest is a gateway in mode resume, a Dovecot that is down for some time, and clients
// that stay active.
type outageTest struct {
	// Set once.
	*testing.T
	backend     *testbed.Dovecot
	faultProxy  *faultproxy.Proxy
	g           *gateway
	sessions    int
	holdTimeout time.Duration

	restored   chan struct{}             // closed when the backend is up again
	restoredAt atomic.Pointer[time.Time] // nil until then

	mu        sync.Mutex
	endCounts map[string]int // Guarded by mu. Sessions by kind of end.
}

// How a session ends in an outage: by its own LOGOUT or as in the documented table. The last
// one is not in the table.
const (
	endLogout         = "itself"
	endMidResponse    = "in the middle of a message"
	endUnknownOutcome = "with an unknown outcome"
	endHoldTimeout    = "with a command that has waited for command_hold_timeout"
	endUnexpected     = "for nothing"
)

// outageKinds are the ways in which a backend goes down and comes back.
var outageKinds = []struct {
	name     string
	everyDay bool // part of every run of the tests
	happen   func(o *outageTest)
}{
	{"stop and start", true, func(o *outageTest) { o.backend.Stop(); o.backend.Restart() }},
	{"kill of all", false, func(o *outageTest) { o.backend.Kill(); o.backend.Restart() }},
	{"kill of the master", false, func(o *outageTest) {
		o.sendSignal(o.backend.PID(), syscall.SIGKILL)
		o.sleep(time.Second)
		o.backend.Restart()
	}},
	{"reload", false, func(o *outageTest) { o.sendSignal(o.backend.PID(), syscall.SIGHUP) }},
	{"stopped for 20 s", false, func(o *outageTest) {
		o.sendSignal(-o.backend.PID(), syscall.SIGSTOP)
		o.sleep(20 * time.Second)
		o.sendSignal(-o.backend.PID(), syscall.SIGCONT)
	}},
	{"RST", true, func(o *outageTest) { o.faultProxy.ResetConns() }},
	{"black hole for 8 s", false, func(o *outageTest) {
		lost := faultproxy.Rules{Faults: []faultproxy.Fault{{Action: faultproxy.Blackhole}}}
		o.faultProxy.SetAcceptMode(faultproxy.Hang)
		o.faultProxy.SetRules(faultproxy.ToClient, lost)
		o.faultProxy.SetRules(faultproxy.ToTarget, lost)
		o.sleep(8 * time.Second)
		o.faultProxy.ResetConns()
		o.faultProxy.SetRules(faultproxy.ToClient, faultproxy.Rules{})
		o.faultProxy.SetRules(faultproxy.ToTarget, faultproxy.Rules{})
		o.faultProxy.SetAcceptMode(faultproxy.Accept)
	}},
	{"8 s down", false, func(o *outageTest) { o.backend.Stop(); o.sleep(8 * time.Second); o.backend.Restart() }},
	{"25 s down", false, func(o *outageTest) { o.backend.Stop(); o.sleep(25 * time.Second); o.backend.Restart() }},
	{"refusal for 5 s", false, func(o *outageTest) { o.makeUnreachable(faultproxy.Refuse, 5*time.Second) }},
	{"silence for 5 s", false, func(o *outageTest) { o.makeUnreachable(faultproxy.Hang, 5*time.Second) }},
}

// In an outage of their backend, sessions end only in the documented cases. No message is
// lost or duplicated.
func TestAnOutageEndsSessionsOnlyAsDocumented(t *testing.T) {
	for _, kind := range outageKinds {
		if !kind.everyDay && testSize(0, 1) == 0 {
			continue
		}
		t.Run(kind.name, func(t *testing.T) {
			if testbed.HasCyrus() {
				t.Skip("signals are sent to Dovecot's processes")
			}
			o := startOutageTest(t, testSize(20, 100))
			var clients errgroup.Group
			busy := sync.WaitGroup{}
			for i := range o.sessions {
				busy.Add(1)
				clients.Go(func() error { return o.runClient(i, busy.Done) })
			}
			busy.Wait() // every client is active
			kind.happen(o)
			now := time.Now()
			o.restoredAt.Store(&now)
			close(o.restored)
			if err := clients.Wait(); err != nil {
				t.Error(err)
			}
			t.Logf("%d sessions ended %v", o.sessions, o.endCounts)
			if n := o.endCounts[endUnexpected]; n > 0 {
				t.Errorf("%d of %d sessions ended without a documented reason", n, o.sessions)
			}
		})
	}
}

func startOutageTest(t *testing.T, sessions int) *outageTest {
	t.Helper()
	o := &outageTest{T: t, sessions: sessions, holdTimeout: 10 * time.Second, restored: make(chan struct{}), endCounts: map[string]int{}}
	o.backend = testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	o.faultProxy = faultproxy.Start(t, o.backend.Endpoints().TLS)
	mode := muxMode(event.ModeResume, fmt.Sprintf(", command_hold_timeout: %v", o.holdTimeout))
	o.g = startGateway(t, o.backend.CA, singleBackend(backendConfAt(o.faultProxy.Address(), event.ImplicitTLS, o.backend.CA)+mode))
	return o
}

func (o *outageTest) sendSignal(pid int, s syscall.Signal) {
	if err := syscall.Kill(pid, s); err != nil {
		o.Error(err)
	}
}

// sleep waits during the outage.
func (o *outageTest) sleep(d time.Duration) { <-time.After(d) }

// makeUnreachable resets all connections and sets the accept mode for d.
func (o *outageTest) makeUnreachable(mode faultproxy.AcceptMode, d time.Duration) {
	o.faultProxy.SetAcceptMode(mode)
	o.faultProxy.ResetConns()
	o.sleep(d)
	o.faultProxy.ResetConns()
	o.faultProxy.SetAcceptMode(faultproxy.Accept)
}

// activities are what the clients do repeatedly until the backend is back.
var activities = []struct {
	name string
	do   func(o *outageTest, c *activeClient) error
}{
	{"idles", (*outageTest).idle}, {"polls", (*outageTest).poll}, {"idles", (*outageTest).idle}, {"reads", (*outageTest).fetchLarge}, {"idles", (*outageTest).idle},
	{"stores", (*outageTest).appendMessages}, {"idles", (*outageTest).idle}, {"lists", (*outageTest).list}, {"rests", (*outageTest).stayIdle}, {"polls", (*outageTest).poll},
}

// activeClient is one client.
type activeClient struct {
	*RawClient
	user          string
	onStarted     func()         // called once the client is active
	appendResults map[string]int // by message: 1 stored, 0 not stored, -1 unknown
	midResponse   bool           // the current response was received partly
	sentAt        time.Time      // of the last command
	nonIdempotent bool           // the last command must not be repeated
}

// runClient runs one client during the outage. After it, runClient checks what is stored.
func (o *outageTest) runClient(i int, onStarted func()) error {
	onStarted = sync.OnceFunc(onStarted)
	defer onStarted()
	activity := activities[i%len(activities)]
	raw, err := dialIMAP(o.g.endpoint(event.ImplicitTLS), "")
	if err != nil {
		return err
	}
	c := &activeClient{RawClient: raw, user: fmt.Sprint(activity.name, i), onStarted: onStarted, appendResults: map[string]int{}}
	defer c.Close() // logged out or aborted
	message := newMessage("first")
	if activity.name == "reads" {
		message = messageOfSize(8<<20, "first")
	}
	for _, err := range []error{
		checkOK(c.Do("LOGIN " + c.user + " " + password)), checkOK(c.Do("APPEND INBOX {+}", message)),
	} {
		if err != nil {
			return fmt.Errorf("%s: %w", c.user, err)
		}
	}
	if activity.name != "lists" {
		if err := checkOK(c.Do("SELECT INBOX")); err != nil {
			return err
		}
	}
	err = activity.do(o, c)
	if err == nil {
		err = checkOK(c.Do("LOGOUT"))
	}
	end := o.classifyEnd(c, err)
	o.mu.Lock()
	o.endCounts[end]++
	o.mu.Unlock()
	if end == endUnexpected {
		o.Logf("%s: %v", c.user, err)
	}
	<-o.restored
	return o.checkStored(c)
}

// classifyEnd returns how a session ended.
func (o *outageTest) classifyEnd(c *activeClient, err error) string {
	switch {
	case err == nil:
		return endLogout
	case c.midResponse:
		return endMidResponse
	case strings.Contains(err.Error(), "Connection to mail store lost") && c.nonIdempotent:
		return endUnknownOutcome
	case strings.Contains(err.Error(), "Mail store is away") && o.waitedHoldTimeout(c):
		return endHoldTimeout
	}
	return endUnexpected
}

// waitedHoldTimeout reports whether the last command waited for command_hold_timeout while
// the backend was down.
func (o *outageTest) waitedHoldTimeout(c *activeClient) bool {
	restoredAt := o.restoredAt.Load()
	return restoredAt == nil || restoredAt.Sub(c.sentAt) > o.holdTimeout
}

// exec sends a command and reads its response. A BYE is an error.
func (c *activeClient) exec(command string, literals ...[]byte) ([]Response, error) {
	c.sentAt = time.Now()
	tag, err := c.Send(command, literals...)
	var refused *RefusedError
	if errors.As(err, &refused) && strings.HasPrefix(refused.Response.Text, tag+" ") {
		return []Response{refused.Response}, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Response
	for {
		if _, err := c.r.Peek(1); err == nil {
			c.midResponse = true
		}
		r, err := c.Read()
		if err != nil {
			return all, err
		}
		c.midResponse = false
		all = append(all, r)
		switch {
		case strings.HasPrefix(r.Text, "* BYE"):
			return all, errors.New(r.Text)
		case strings.HasPrefix(r.Text, tag+" "):
			c.onStarted()
			return all, nil
		}
	}
}

// repeatUntilRestored calls do until the backend is back, and one more time.
func (o *outageTest) repeatUntilRestored(pause time.Duration, do func() error) error {
	for restored := false; ; {
		if err := do(); err != nil || restored {
			return err
		}
		select {
		case <-o.restored:
			restored = true
		case <-time.After(pause):
		}
	}
}

func (o *outageTest) poll(c *activeClient) error {
	return o.repeatUntilRestored(200*time.Millisecond, func() error { return checkOK(c.exec("NOOP")) })
}

func (o *outageTest) fetchLarge(c *activeClient) error {
	return o.repeatUntilRestored(0, func() error { return checkOK(c.exec("FETCH 1 BODY.PEEK[]")) })
}

// list sends LIST without a selected mailbox. A command that waits too long is refused, and
// the session continues.
func (o *outageTest) list(c *activeClient) error {
	return o.repeatUntilRestored(200*time.Millisecond, func() error {
		got, err := c.exec(`LIST "" *`)
		if err == nil && strings.Contains(formatResponses(got), "NO [UNAVAILABLE]") && o.waitedHoldTimeout(c) {
			return nil
		}
		return checkOK(got, err)
	})
}

func (o *outageTest) stayIdle(c *activeClient) error {
	c.onStarted()
	<-o.restored
	return checkOK(c.exec("NOOP"))
}

// idle waits in IDLE for a message that is delivered once the backend is back.
func (o *outageTest) idle(c *activeClient) error {
	c.sentAt = time.Now()
	tag, err := c.Send("IDLE")
	if err == nil {
		err = c.awaitContinuation()
	}
	if err != nil {
		return err
	}
	c.onStarted()
	<-o.restored
	c.sentAt = time.Now()
	if err := o.deliverDirect(c.user); err != nil {
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
			return errors.Join(err, checkOK(c.ReadUntil(tag)))
		}
	}
}

// deliverDirect stores a message directly at the backend. It retries, because the backend
// may not be up yet.
func (o *outageTest) deliverDirect(user string) (err error) {
	for range 300 {
		var c *RawClient
		if c, err = dialIMAP(directEndpoint(o.backend)(o, user), ""); err == nil {
			err = checkOK(c.Do("LOGIN " + user + " " + password))
			if err == nil {
				err = checkOK(c.Do("APPEND INBOX {+}", newMessage("second")))
			}
			_ = c.Close() // the outcome is known
		}
		if err == nil {
			return nil
		}
		o.sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("deliver to %s: %w", user, err)
}

// appendMessages appends one message after the other.
func (o *outageTest) appendMessages(c *activeClient) error {
	n := 0
	return o.repeatUntilRestored(10*time.Millisecond, func() error {
		n++
		subject := fmt.Sprint("upload ", n)
		c.nonIdempotent, c.appendResults[subject] = true, -1
		got, err := c.exec("APPEND INBOX {}", messageOfSize(64<<10, subject))
		c.nonIdempotent = err != nil
		switch {
		case err != nil:
			return err
		case strings.Contains(got[len(got)-1].Text, " NO [UNAVAILABLE]"):
			c.appendResults[subject] = 0
			return nil
		}
		c.appendResults[subject] = 1
		return checkOK(got, err)
	})
}

// checkStored compares a client's results of APPEND with its mailbox.
func (o *outageTest) checkStored(c *activeClient) error {
	if len(c.appendResults) == 0 {
		return nil
	}
	direct, err := dialIMAP(directEndpoint(o.backend)(o, c.user), "")
	if err != nil {
		return err
	}
	defer direct.Close() // only reads
	if err := errors.Join(checkOK(direct.Do("LOGIN "+c.user+" "+password)), checkOK(direct.Do("EXAMINE INBOX"))); err != nil {
		return err
	}
	got, err := direct.Do("FETCH 1:* BODY.PEEK[HEADER.FIELDS (SUBJECT)]")
	if err != nil {
		return err
	}
	stored := map[string]int{}
	for _, r := range got {
		for _, header := range r.Literals {
			stored[strings.TrimPrefix(strings.TrimSpace(string(header)), "Subject: ")]++
		}
	}
	for subject, answered := range c.appendResults {
		if n := stored[subject]; answered >= 0 && n != answered || n > 1 {
			err = errors.Join(err, fmt.Errorf("%s: %q is there %d times, and was answered as if %d", c.user, subject, n, answered))
		}
	}
	return err
}

// The backend process of one session hangs while its TCP connection stays alive. The
// session's client still gets its response, and its session ends in IDLE.
func TestHungBackendProcessIsDetected(t *testing.T) {
	if testbed.HasCyrus() {
		t.Skip("the process of a session is found in Dovecot's log")
	}
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	// Without read_after_write the last login is the session's.
	mode := muxMode(event.ModeResume, ", silence_timeout: 2s, read_after_write: false")
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)+mode))
	c, err := dialIMAP(g.endpoint(event.ImplicitTLS), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // logged out
	exec := func(command string) {
		t.Helper()
		if err := checkOK(c.Do(command)); err != nil {
			t.Fatal(err)
		}
	}
	exec("LOGIN hung " + password)
	exec("SELECT INBOX")
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
		exec(command)
		if n := len(g.records("upstream_lost", "hung")); n != i+1 {
			t.Errorf("after %s %d upstreams were lost, want %d", command, n, i+1)
		}
	}
}

// Six sessions of one user open a mailbox at the same time. Dovecot has no mod-sequences for
// it yet, and it has more messages than the gateway compares flags of. All sessions survive a
// lost upstream.
func TestSixSessionsInALargeMailboxSurviveALostUpstream(t *testing.T) {
	if testSize(0, 1) == 0 {
		t.Skipf("it waits for 12 s; set %s=1", soakEnv)
	}
	o := startOutageTest(t, 6)
	first := mustDial(t, o.g.endpoint(event.ImplicitTLS), "")
	mustExec(t, first, "LOGIN six "+password)
	messages := settings.Default[mux.Settings]().FlagResyncMaxMessages + 500
	var literals [][]byte
	for i := range messages {
		literals = append(literals, messageOfSize(100, fmt.Sprint("number ", i)))
	}
	if err := checkOK(first.Do("APPEND INBOX"+strings.Repeat(" {+}", messages), literals...)); err != nil {
		t.Fatal(err)
	}
	all := []*RawClient{first}
	for range o.sessions - 1 {
		c := mustDial(t, o.g.endpoint(event.ImplicitTLS), "")
		mustExec(t, c, "LOGIN six "+password)
		all = append(all, c)
	}
	for _, c := range all {
		mustExec(t, c, "SELECT INBOX")
	}
	o.sleep(12 * time.Second)
	for _, c := range all {
		mustExec(t, c, "NOOP")
	}
	o.faultProxy.ResetConns()
	for i, c := range all {
		if err := checkOK(c.Do("NOOP")); err != nil {
			t.Errorf("session %d: %v", i, err)
		}
	}
}
