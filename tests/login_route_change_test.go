package tests

import (
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// delayedBackend is a backend that answers a login when the test releases it. It records
// all other commands except ID and LOGOUT.
type delayedBackend struct {
	loginArrived chan struct{} // receives when a login arrives
	release      chan struct{} // send to answer it
	commands     chan string   // commands after the login
}

const delayedCaps = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"

func (s delayedBackend) serve(conn *testkit.Conn) {
	_ = conn.Send("* OK [" + delayedCaps + "] ready") // the next read has the error
	for {
		tag, command, err := conn.ReadCommand()
		if err != nil {
			return
		}
		answer := tag + " OK done"
		switch name, _, _ := strings.Cut(command, " "); name {
		case "AUTHENTICATE":
			s.loginArrived <- struct{}{}
			<-s.release
			answer = tag + " OK [" + delayedCaps + "] welcome"
		case "ID", "LOGOUT":
		default:
			s.commands <- command
		}
		if conn.Send(answer) != nil {
			return
		}
	}
}

// A route record that changes while the backend verifies a login applies to that login
// too: no session begins at the previous backend.
func TestLoginInProgressFollowsARouteChange(t *testing.T) {
	t.Parallel()
	changes := map[string]struct {
		fields       []string
		want, reason string
	}{
		"paused":  {[]string{"backend", "east", "state", "paused"}, " NO [UNAVAILABLE] ", "user_paused"},
		"blocked": {[]string{"backend", "east", "state", "blocked"}, " NO [AUTHENTICATIONFAILED] ", "user_blocked"},
		"moved":   {[]string{"backend", "west"}, " NO [UNAVAILABLE] ", "moved"},
		"renamed": {[]string{"backend", "east", "login", "other.user"}, " NO [UNAVAILABLE] ", "moved"},
	}
	ca := testbed.NewCA(t)
	s := redisStores["single"](t)
	back := delayedBackend{make(chan struct{}), make(chan struct{}), make(chan string, 64)}
	east := testkit.StartIMAP(t, back.serve)
	west := startStub(t, nil)
	settings := muxMode(event.ModeSplice, "")
	g := startGateway(t, ca, s.conf, backendsConf(map[string]string{"east": plainBackend(east.Addr()) + settings, "west": plainBackend(west.Addr()) + settings}))
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		for name, change := range changes {
			user := name + "." + string(mode)
			t.Run(user, func(t *testing.T) {
				s.setRoute(t, user, "east", "mode", string(mode))
				client := mustDial(t, g.endpoint(event.NoTLS), "")
				tag, err := client.Send("LOGIN " + user + " " + password)
				if err != nil {
					t.Fatal(err)
				}
				<-back.loginArrived
				s.setRoute(t, user, "east", change.fields...)
				testkit.Eventually(t, "the gateway to know", func() bool {
					x := g.explain(user)
					return x.Backend != "east" || x.Login != user
				})
				back.release <- struct{}{}
				got, err := client.ReadUntil(tag)
				if err != nil || !strings.Contains(formatResponses(got), change.want) {
					t.Errorf("the login under way: %v, %v; want %s", got, err, change.want)
				}
				testkit.Eventually(t, "the refusal to be on record", func() bool {
					return countReasons(g.records("login_refused", user))[change.reason] > 0
				})
				if status := g.limitStatus(user); status.Failures[1].Window != "day" || status.Failures[1].Count != 0 { // the password was right
					t.Errorf("counted as a failure: %+v", status)
				}
			})
		}
	}
	select {
	case command := <-back.commands:
		t.Errorf("a backend received %q from a session that must not exist", command)
	default:
	}
}
