package proxy

import (
	"bufio"
	"cmp"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"imapgate/auth"
	"imapgate/internal/breaker"
	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// requirePairs returns how many pairs to time for each mechanism: none in an ordinary run,
// where times mean nothing.
func requirePairs(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("IMAPGATE_ENUMERATION"))
	if err != nil || n < 1 {
		t.Skip("measures times; make enumeration runs it")
	}
	return n
}

// TestDenialTimeDoesNotRevealUsers compares, for each mechanism, the times of denials for a
// wrong password with those for an unknown user. A guess based on the time must be no
// better than chance.
func TestDenialTimeDoesNotRevealUsers(t *testing.T) {
	pairs := requirePairs(t)
	hash, err := auth.Hash("SCRAM-SHA-256", identity.NewSecret(password))
	testkit.NoError(t, err)
	b := openHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		s.users = "frank@example.org:" + hash + "\n"
		s.auth.Methods = []string{auth.File}
		s.auth.Mechanisms = []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
		s.auth.SCRAMSecret = identity.NewSecret("the secret of the salts of unknown users")
		s.routes.Static.Default = "east"
		s.cfg.MaxAuthAttempts = 1
		s.limits.Failures.PerUserNetworkHour = 1 << 30 // otherwise frank would be refused before verification
	})
	for name, q := range passwordMechanisms() {
		b.compareTimes(t, name, pairs, q)
	}
}

// timingProbe is a login to be timed, its listener and its minimum answer time.
type timingProbe struct {
	run      func(*prober, string) bool // reports whether the answer was the expected one
	minTime  time.Duration
	listener string // default "none"
}

// passwordMechanisms returns the mechanisms that send a user name.
func passwordMechanisms() map[string]timingProbe {
	return map[string]timingProbe{
		"LOGIN":              {run: (*prober).tryLogin, minTime: minDenialTime},
		"PLAIN":              {run: (*prober).tryPlain, minTime: minDenialTime},
		"AUTH=LOGIN":         {run: (*prober).trySASLLogin, minTime: minDenialTime},
		"SCRAM-SHA-256":      {run: (*prober).tryScram, minTime: minDenialTime},
		"SCRAM-SHA-256-PLUS": {run: (*prober).tryScramPlus, minTime: minDenialTime, listener: "implicit"},
	}
}

// compareTimes fails if the answer times distinguish the user from an unknown one. The
// thresholds are for a thousand pairs or more: with fewer, two samples of the same
// distribution differ more by chance.
func (b *harness) compareTimes(t *testing.T, name string, pairs int, q timingProbe) {
	t.Helper()
	known, unknown := b.measureTimes(t, pairs, q)
	a, z, odds := known[pairs/2], unknown[pairs/2], auc(known, unknown)
	apart := 100 * (a - z).Abs().Seconds() / min(a, z).Seconds()
	t.Logf("%s: %d pairs, medians %v and %v, %.2f %% apart, AUC %.3f", name, pairs, a, z, apart, odds)
	chance := max(1, math.Sqrt(1000/float64(pairs)))
	if apart > 5*chance {
		t.Errorf("%s: medians of %v for a user and %v for an unknown one", name, a, z)
	}
	if math.Abs(odds-0.5) > 0.05*chance {
		t.Errorf("%s: a guess by time is right in %.1f %%", name, 100*odds)
	}
}

// measureTimes returns the sorted answer times for the user and for an unknown one. A pair
// is repeated if one of its logins got no verdict.
func (b *harness) measureTimes(t *testing.T, pairs int, q timingProbe) (known, unknown []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var retries atomic.Int64
	runParallel(pairs, 16, func(i int) {
		of, err := b.timePair(q, i)
		for errors.Is(err, errNoVerdictGiven) && retries.Add(1) <= int64(pairs) {
			<-time.After(breaker.TrialInterval) // otherwise the circuit breaker would answer
			of, err = b.timePair(q, i)
		}
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		known, unknown = append(known, of[0]), append(unknown, of[1])
	})
	if len(known) < pairs {
		t.Fatalf("%d of %d pairs were answered", len(known), pairs)
	}
	if n := retries.Load(); n > 0 {
		t.Logf("%d pairs were repeated, because a lookup timed out", n)
	}
	slices.Sort(known)
	slices.Sort(unknown)
	if least := min(known[0], unknown[0]); least < q.minTime {
		t.Fatalf("an answer after %v", least)
	}
	return known, unknown
}

// timePair times a login of the user and one of an unknown user, each on its own
// connection; their order alternates.
func (b *harness) timePair(q timingProbe, i int) (of [2]time.Duration, err error) {
	for position := range of {
		which := (position + i) % 2
		if of[which], err = b.timeLogin(q, []string{"frank", fmt.Sprint("unknown", i)}[which]); err != nil {
			return of, err
		}
	}
	return of, nil
}

// auc returns the probability that an element of a is greater than one of z.
func auc(a, z []time.Duration) float64 {
	less := 0
	for _, x := range a {
		i, _ := slices.BinarySearch(z, x)
		less += i
	}
	return float64(less) / float64(len(a)*len(z))
}

// prober is a client for one login attempt.
type prober struct {
	nc       net.Conn
	r        *bufio.Reader
	lastLine string // last line received
}

// errNoVerdictGiven reports an answer that does not depend on the user: on a loaded machine
// Redis is sometimes silent for longer than routing's timeout.
var errNoVerdictGiven = errors.New("no verdict on the login")

// timeLogin returns the time of one answer, or an error if the answer was unexpected.
func (b *harness) timeLogin(q timingProbe, user string) (time.Duration, error) {
	nc, err := net.Dial("tcp", b.addr(cmp.Or(q.listener, "none")))
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	if q.listener == "implicit" {
		nc = tls.Client(nc, &tls.Config{RootCAs: b.rootCAs, ServerName: "localhost"})
	}
	p := &prober{nc: nc, r: bufio.NewReader(nc)}
	p.readLine()
	start := time.Now()
	answered := q.run(p, user)
	took := time.Since(start)
	switch {
	case answered:
		return took, nil
	case strings.Contains(p.lastLine, unavailableReply):
		return took, errNoVerdictGiven
	}
	return took, fmt.Errorf("login of %s: after %v received %q", user, took, p.lastLine)
}

// readLine returns the next line, or "" at the end.
func (p *prober) readLine() string {
	p.lastLine, _ = p.r.ReadString('\n')
	return p.lastLine
}

func (p *prober) exchange(line string) string {
	_, _ = io.WriteString(p.nc, line+"\r\n") // readLine reports the failure
	return p.readLine()
}

func encodeBase64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// isDenied reports whether the answer to a line is a denial.
func (p *prober) isDenied(line string) bool {
	return strings.Contains(p.exchange(line), authFailedReply)
}

func (p *prober) tryLogin(user string) bool { return p.isDenied("a LOGIN " + user + " wrong") }

func (p *prober) tryPlain(user string) bool {
	return p.isDenied("a AUTHENTICATE PLAIN " + encodeBase64("\x00"+user+"\x00wrong"))
}

func (p *prober) trySASLLogin(user string) bool {
	p.exchange("a AUTHENTICATE LOGIN")
	p.exchange(encodeBase64(user))
	return p.isDenied(encodeBase64("wrong"))
}

// requestChallenge requests only a user's salt.
func (p *prober) requestChallenge(user string) bool {
	return strings.HasPrefix(p.exchange("a AUTHENTICATE SCRAM-SHA-256 "+encodeBase64("n,,n="+user+",r=nonce")), "+ ")
}

func (p *prober) tryScram(user string) bool {
	client, err := scram.SHA256.NewClient(user, "wrong", "")
	return err == nil && strings.Contains(p.runScram("SCRAM-SHA-256", client.NewConversation()), authFailedReply)
}

// tryScramPlus binds the proof to the connection.
func (p *prober) tryScramPlus(user string) bool {
	secure, ok := p.nc.(*tls.Conn)
	if !ok {
		return false
	}
	state := secure.ConnectionState()
	binding, err := scram.NewTLSExporterBinding(&state)
	if err != nil {
		return false
	}
	client, err := scram.SHA256.NewClient(user, "wrong", "")
	return err == nil && strings.Contains(p.runScram("SCRAM-SHA-256-PLUS", client.NewConversationWithChannelBinding(binding)), authFailedReply)
}

// runScram returns the answer to the client's proof, or "" if none was sent.
func (p *prober) runScram(mechanism string, conversation *scram.ClientConversation) string {
	first, err := conversation.Step("")
	if err != nil {
		return ""
	}
	challenge := strings.TrimPrefix(p.exchange("a AUTHENTICATE "+mechanism+" "+encodeBase64(first)), "+ ")
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(challenge))
	if err != nil {
		return ""
	}
	final, err := conversation.Step(string(text))
	if err != nil {
		return ""
	}
	return p.exchange(encodeBase64(final))
}
