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
)

// pairsWanted is how many pairs a mechanism is asked for: none in an ordinary run,
// where times say nothing.
func pairsWanted(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("IMAPGATE_ENUMERATION"))
	if err != nil || n < 1 {
		t.Skip("measures times; make enumeration runs it")
	}
	return n
}

// TestTheTimeOfADenialSaysNothingAboutTheUser compares, for each mechanism, the
// denials of a user whose password was wrong with those of one who does not exist.
// Whoever judges by the time must do no better than by a coin.
func TestTheTimeOfADenialSaysNothingAboutTheUser(t *testing.T) {
	pairs := pairsWanted(t)
	hash, err := auth.Hash("SCRAM-SHA-256", identity.NewSecret(password))
	must(t, err)
	b := openBed(t, openMailbox(t).addr(), func(s *setup) {
		s.users = "frank@example.org:" + hash + "\n"
		s.auth.Methods = []string{auth.File}
		s.auth.Mechanisms = []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"}
		s.auth.SCRAMSecret = identity.NewSecret("the secret of the salts of nobody")
		s.routes.Static.Default = "east"
		s.cfg.AuthAttempts = 1
		s.limits.Failures.PerPairHour = 1 << 30 // or frank would be refused before he is looked at
	})
	for name, q := range passwordsAndProofs() {
		b.compare(t, name, pairs, q)
	}
}

// question is what a prober asks about a user, where, and how soon it may be
// answered.
type question struct {
	ask      func(*prober, string) bool // whether it was answered as it should
	floor    time.Duration
	listener string // default none
}

// passwordsAndProofs are the mechanisms by which there is somebody to ask about.
func passwordsAndProofs() map[string]question {
	return map[string]question{
		"LOGIN":              {ask: (*prober).login, floor: denialFloor},
		"PLAIN":              {ask: (*prober).plain, floor: denialFloor},
		"AUTH=LOGIN":         {ask: (*prober).sasl, floor: denialFloor},
		"SCRAM-SHA-256":      {ask: (*prober).scram, floor: denialFloor},
		"SCRAM-SHA-256-PLUS": {ask: (*prober).plus, floor: denialFloor, listener: "implicit"},
	}
}

// compare fails when the times of the answers tell the user from nobody. The bars
// are for a thousand pairs and more: of fewer, two halves of the same times lie
// further apart by chance.
func (b *bed) compare(t *testing.T, name string, pairs int, q question) {
	t.Helper()
	known, unknown := b.measure(t, pairs, q)
	a, z, odds := known[pairs/2], unknown[pairs/2], auc(known, unknown)
	apart := 100 * (a - z).Abs().Seconds() / min(a, z).Seconds()
	t.Logf("%s: %d pairs, medians %v and %v, %.2f %% apart, AUC %.3f", name, pairs, a, z, apart, odds)
	chance := max(1, math.Sqrt(1000/float64(pairs)))
	if apart > 5*chance {
		t.Errorf("%s: medians of %v for a user and %v for nobody", name, a, z)
	}
	if math.Abs(odds-0.5) > 0.05*chance {
		t.Errorf("%s: whoever judges by the time is right in %.1f %%", name, 100*odds)
	}
}

// measure gives the times of the answers about a user and about nobody, sorted.
// A pair is asked again when one of the two could not be judged.
func (b *bed) measure(t *testing.T, pairs int, q question) (known, unknown []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var again atomic.Int64
	crowd(pairs, 16, func(i int) {
		of, err := b.pair(q, i)
		for errors.Is(err, errNotJudged) && again.Add(1) <= int64(pairs) {
			<-time.After(breaker.For) // or it would be told that Redis is left alone
			of, err = b.pair(q, i)
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
	if n := again.Load(); n > 0 {
		t.Logf("%d pairs were asked again, because a lookup took longer than it may", n)
	}
	slices.Sort(known)
	slices.Sort(unknown)
	if least := min(known[0], unknown[0]); least < q.floor {
		t.Fatalf("an answer after %v", least)
	}
	return known, unknown
}

// pair asks about the user and about nobody, on connections of their own; which of
// them is first alternates.
func (b *bed) pair(q question, i int) (of [2]time.Duration, err error) {
	for turn := range of {
		who := (turn + i) % 2
		if of[who], err = b.probe(q, []string{"frank", fmt.Sprint("nobody", i)}[who]); err != nil {
			return of, err
		}
	}
	return of, nil
}

// auc is the chance that one of a is greater than one of z.
func auc(a, z []time.Duration) float64 {
	less := 0
	for _, x := range a {
		i, _ := slices.BinarySearch(z, x)
		less += i
	}
	return float64(less) / float64(len(a)*len(z))
}

// prober is a client that tries one login.
type prober struct {
	nc   net.Conn
	r    *bufio.Reader
	last string // what it heard last
}

// errNotJudged is an answer that says nothing of the user: on a machine with much
// else to do Redis is now and then silent for longer than routing waits for it.
var errNotJudged = errors.New("the login could not be judged")

// probe is the time of one answer; an error, when it was not the one to expect.
func (b *bed) probe(q question, user string) (time.Duration, error) {
	nc, err := net.Dial("tcp", b.addr(cmp.Or(q.listener, "none")))
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	if q.listener == "implicit" {
		nc = tls.Client(nc, &tls.Config{RootCAs: b.trusts, ServerName: "localhost"})
	}
	p := &prober{nc: nc, r: bufio.NewReader(nc)}
	p.hear()
	began := time.Now()
	answered := q.ask(p, user)
	took := time.Since(began)
	switch {
	case answered:
		return took, nil
	case strings.Contains(p.last, unavailableReply):
		return took, errNotJudged
	}
	return took, fmt.Errorf("asked about %s, after %v it says %q", user, took, p.last)
}

// hear is the next line, "" at the end.
func (p *prober) hear() string {
	p.last, _ = p.r.ReadString('\n')
	return p.last
}

func (p *prober) ask(line string) string {
	_, _ = io.WriteString(p.nc, line+"\r\n") // what fails shows in what is heard
	return p.hear()
}

func coded(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// denied says whether the answer to a line is a denial.
func (p *prober) denied(line string) bool { return strings.Contains(p.ask(line), deniedReply) }

func (p *prober) login(user string) bool { return p.denied("a LOGIN " + user + " wrong") }

func (p *prober) plain(user string) bool {
	return p.denied("a AUTHENTICATE PLAIN " + coded("\x00"+user+"\x00wrong"))
}

func (p *prober) sasl(user string) bool {
	p.ask("a AUTHENTICATE LOGIN")
	p.ask(coded(user))
	return p.denied(coded("wrong"))
}

// challenge asks for a user's salt and no more.
func (p *prober) challenge(user string) bool {
	return strings.HasPrefix(p.ask("a AUTHENTICATE SCRAM-SHA-256 "+coded("n,,n="+user+",r=nonce")), "+ ")
}

func (p *prober) scram(user string) bool {
	client, err := scram.SHA256.NewClient(user, "wrong", "")
	return err == nil && strings.Contains(p.prove("SCRAM-SHA-256", client.NewConversation()), deniedReply)
}

// plus binds the proof to the connection.
func (p *prober) plus(user string) bool {
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
	return err == nil && strings.Contains(p.prove("SCRAM-SHA-256-PLUS", client.NewConversationWithChannelBinding(binding)), deniedReply)
}

// prove is the answer to the client's proof, "" when it came to none.
func (p *prober) prove(mechanism string, talk *scram.ClientConversation) string {
	first, err := talk.Step("")
	if err != nil {
		return ""
	}
	challenge := strings.TrimPrefix(p.ask("a AUTHENTICATE "+mechanism+" "+coded(first)), "+ ")
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(challenge))
	if err != nil {
		return ""
	}
	final, err := talk.Step(string(text))
	if err != nil {
		return ""
	}
	return p.ask(coded(final))
}
