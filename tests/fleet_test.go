package tests

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// startFleet starts gateways with these names and one Redis. sections are the rest of their
// configuration.
func startFleet(t *testing.T, r *testbed.Redis, names []string, sections ...string) []*gatewayProcess {
	t.Helper()
	ca := testbed.NewCA(t)
	var fleet []*gatewayProcess
	for _, name := range names {
		own := append([]string{fmt.Sprintf("gateway: {name: %s}\nredis: {addresses: [%q]}", name, r.Address)}, sections...)
		fleet = append(fleet, startProcess(t, ca, own...))
	}
	testkit.Eventually(t, "all gateways know each other", func() bool {
		for _, g := range fleet {
			out, _ := g.operate(t, "gateways")
			for _, name := range names {
				if !strings.Contains(out, name) {
					return false
				}
			}
		}
		return true
	})
	return fleet
}

// logIn opens a session of a user and returns it with INBOX selected.
func (b *gatewayProcess) logIn(t testing.TB, user string) *RawClient {
	t.Helper()
	c, err := dialIMAP(b.endpoint("implicit"), "")
	if err == nil {
		err = errors.Join(checkOK(c.Do("LOGIN "+user+" "+password)), checkOK(c.Do("SELECT INBOX")))
	}
	if err != nil {
		t.Fatalf("%s: %v", user, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// isOpen reports whether a session still answers.
func isOpen(c *RawClient) bool { return checkOK(c.Do("NOOP")) == nil }

func TestAUserIsKickedInTheWholeFleet(t *testing.T) {
	t.Parallel()
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	r := testbed.StartRedis(t)
	fleet := startFleet(t, r, []string{"gw-a", "gw-b", "gw-c"}, fmt.Sprintf(`routing: {source: static, static: {default: east}}
backends: {east: {%s, mode: resume}}`, plainBackend(d.Plain)))
	open := func() (bobs []*RawClient, carol *RawClient) {
		for _, g := range fleet {
			bobs = append(bobs, g.logIn(t, "bob"))
		}
		return bobs, fleet[1].logIn(t, "carol")
	}
	bobs, carol := open()
	if out, status := fleet[0].operate(t, "sessions", "--user", "b*b", "--json"); status != 0 || strings.Count(out, `"user":"bob"`) != 3 || !strings.Contains(out, `"total":3`) {
		t.Errorf("%d: %s", status, out)
	}
	start := time.Now()
	if out, status := fleet[0].operate(t, "kick", "bob", "--reason", "Testing"); status != 0 || out != "kick bob: 3 sessions ended on 3 of 3 gateways\n" {
		t.Errorf("%d: %s", status, out)
	}
	t.Logf("the kick took %v, with the start of its process", time.Since(start))
	for i, c := range bobs {
		if got, err := c.Read(); err != nil || got.Text != "* BYE [UNAVAILABLE] Testing" {
			t.Errorf("session %d: %v, %v", i, got, err)
		}
	}
	if !isOpen(carol) {
		t.Error("another user's session has ended")
	}

	bobs, _ = open()
	if err := fleet[2].process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	out, status := fleet[0].operate(t, "kick", "bob")
	if err := fleet[2].process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if status != 3 || out != "kick bob: 2 sessions ended on 2 of 3 gateways; gw-c did not answer within 2 s\n" {
		t.Errorf("%d: %s", status, out)
	}
	if isOpen(bobs[0]) || isOpen(bobs[1]) || !isOpen(bobs[2]) {
		t.Error("other sessions have ended than those that the command has reported")
	}
	if out, status := fleet[1].operate(t, "kick", "bob", "--block", "1m"); status != 0 || !strings.Contains(out, "logins are refused until") {
		t.Errorf("%d: %s", status, out)
	}
	for _, g := range fleet {
		c, err := dialIMAP(g.endpoint("implicit"), "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // not logged in
		if got, err := c.Do("LOGIN bob " + password); err != nil || !strings.Contains(got[len(got)-1].Text, "NO [AUTHENTICATIONFAILED]") {
			t.Errorf("a blocked user: %v, %v", got, err)
		}
	}
}

func TestAnAddressIsDrainedInTheWholeFleetAndAfterARestart(t *testing.T) {
	t.Parallel()
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	r := testbed.StartRedis(t)
	first, second := faultproxy.Start(t, d.Plain), faultproxy.Start(t, d.Plain)
	sections := fmt.Sprintf(`routing: {source: static, static: {default: east}}
backends: {east: {addresses: [{address: %q}, {address: %q, priority: 2}], tls: none, health: {interval: 1s}}}`, first.Address(), second.Address())
	fleet := startFleet(t, r, []string{"gw-a", "gw-b"}, sections)
	old := fleet[1].logIn(t, "old")
	if out, status := fleet[0].operate(t, "backends", "drain", first.Address()); status != 0 || !strings.Contains(out, "is draining, on 2 of 2 gateways; 1 session there") {
		t.Errorf("%d: %s", status, out)
	}
	at := func(g *gatewayProcess, user string) string {
		t.Helper()
		g.logIn(t, user)
		out, _ := g.operate(t, "sessions", "--user", user, "--json")
		for _, address := range []string{first.Address(), second.Address()} {
			if strings.Contains(out, fmt.Sprintf(`"address":%q`, address)) {
				return address
			}
		}
		t.Errorf("%s: %s", user, out)
		return ""
	}
	late := startFleet(t, r, []string{"gw-late"}, sections)
	for _, g := range append(fleet, late...) {
		if got := at(g, "old"); got != first.Address() {
			t.Errorf("a user with sessions there is sent to %s", got)
		}
		if got := at(g, "new"); got != second.Address() {
			t.Errorf("a new user is sent to %s", got)
		}
	}
	if !isOpen(old) {
		t.Error("the drain has ended a session")
	}
	if out, status := late[0].operate(t, "backends", "resume", first.Address()); status != 0 || !strings.Contains(out, "is up, on 3 of 3 gateways") {
		t.Errorf("%d: %s", status, out)
	}
	if got := at(fleet[0], "third"); got != first.Address() {
		t.Errorf("after resume a new user is sent to %s", got)
	}
}

// Sessions of an address that is evacuated continue at the other one, whatever they are doing.
func TestAnEvacuationCutsNoSession(t *testing.T) {
	t.Parallel()
	const resting = 40
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	first, second := faultproxy.Start(t, d.Plain), faultproxy.Start(t, d.Plain)
	g := startProcess(t, testbed.NewCA(t), fmt.Sprintf(`routing: {source: static, static: {users: {spliced: west}, default: east}}
limits: {exempt_networks: [127.0.0.0/8]}
backends:
  east: {addresses: [{address: %[1]q}, {address: %[2]q, priority: 2}], tls: none, mode: resume, health: {interval: 1s}}
  west: {addresses: [{address: %[1]q}, {address: %[2]q, priority: 2}], tls: none, health: {interval: 1s}}`, first.Address(), second.Address()))
	var clients []*RawClient
	for i := range resting {
		clients = append(clients, g.logIn(t, fmt.Sprint("user", i)))
	}
	idle, appending, fetching, spliced := g.logIn(t, "idle"), g.logIn(t, "appending"), g.logIn(t, "fetching"), g.logIn(t, "spliced")
	if _, err := idle.Send("IDLE"); err != nil {
		t.Fatal(err)
	}
	if got, err := idle.Read(); err != nil || !strings.HasPrefix(got.Text, "+") {
		t.Fatal(got, err)
	}
	large := strings.Repeat("x", 8<<20)
	if err := checkOK(fetching.Do("APPEND INBOX {}", []byte("Subject: large\r\n\r\n"+large))); err != nil {
		t.Fatal(err)
	}
	fetchTag, err := fetching.Send("FETCH 1 BODY[]") // not read yet
	if err != nil {
		t.Fatal(err)
	}
	message := "Subject: half\r\n\r\n" + strings.Repeat("y", 1000)
	fmt.Fprintf(appending, "half APPEND INBOX {%d}\r\n", len(message))
	if got, err := appending.Read(); err != nil || !strings.HasPrefix(got.Text, "+") {
		t.Fatal(got, err)
	}
	fmt.Fprint(appending, message[:500])

	if out, status := g.operate(t, "backends", "evacuate", first.Address(), "--backend", "east", "--dry-run"); status != 0 || !strings.Contains(out, fmt.Sprintf("%d move unnoticed, 0 after a pause, 0 end", resting+3)) {
		t.Errorf("%d: %s", status, out)
	}
	if out, status := g.operate(t, "backends", "evacuate", first.Address(), "--backend", "west", "--dry-run"); status != 0 || !strings.Contains(out, "1 end: 1 spliced") {
		t.Errorf("%d: %s", status, out)
	}
	start := time.Now()
	waited := make(chan string, 1)
	go func() {
		out, status := g.operate(t, "backends", "evacuate", first.Address(), "--backend", "east", "--wait")
		waited <- fmt.Sprint(status, " ", out)
	}()
	testkit.Eventually(t, "all sessions that can have left", func() bool {
		out, _ := g.operate(t, "sessions", "--backend", "east", "--address", first.Address(), "--json")
		return strings.Contains(out, `"total":2`) // those with an upload and a download in progress
	})
	fmt.Fprint(appending, message[500:]+"\r\n")
	if got, err := appending.ReadUntil("half"); checkOK(got, err) != nil {
		t.Errorf("the upload: %v, %v", got, err)
	}
	got, err := fetching.ReadUntil(fetchTag)
	if checkOK(got, err) != nil || len(got[0].Literals[0]) < len(large) {
		t.Errorf("the download: %v", err)
	}
	if out := <-waited; !strings.HasPrefix(out, "0 ") || !strings.HasSuffix(out, "0 sessions left\n") {
		t.Error(out)
	}
	t.Logf("%d sessions were evacuated in %v", resting+3, time.Since(start))

	// The idle client hears of new mail through its new connection.
	if err := checkOK(g.logIn(t, "idle").Do("APPEND INBOX {}", []byte("Subject: new\r\n\r\nx"))); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := idle.Read()
		if err != nil {
			t.Fatal(err)
		}
		if got.Text == "* 1 EXISTS" {
			break
		}
	}
	var all errgroup.Group
	for _, c := range append(clients, appending, fetching) {
		all.Go(func() error { return checkOK(c.Do("NOOP")) })
	}
	if err := all.Wait(); err != nil {
		t.Errorf("a session was cut: %v", err)
	}
	testkit.Eventually(t, "only the spliced session's connection to be left, between two health checks", func() bool { return first.ConnCount() == 1 })
	if !isOpen(spliced) {
		t.Error("a session of the other backend has ended")
	}
}
