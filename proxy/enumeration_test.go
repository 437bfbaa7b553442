package proxy

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"imapgate/auth"
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
		s.auth.Mechanisms = []string{"PLAIN", "LOGIN", "SCRAM-SHA-256"}
		s.auth.SCRAMSecret = identity.NewSecret("the secret of the salts of nobody")
		s.routes.Static.Default = "east"
		s.cfg.AuthAttempts = 1
		s.limits.Failures.PerPairHour = 1 << 30 // or frank would be refused before he is looked at
	})
	for name, ask := range map[string]func(p *prober, user string) bool{
		"LOGIN": (*prober).login, "PLAIN": (*prober).plain, "AUTH=LOGIN": (*prober).sasl, "SCRAM-SHA-256": (*prober).scram,
	} {
		b.compare(t, name, pairs, question{ask, denialFloor})
	}
}

// question is what a prober asks about a user, and how soon it may be answered.
type question struct {
	ask   func(*prober, string) bool // whether it was answered as it should
	floor time.Duration
}

// compare fails when the times of the answers tell the user from nobody.
func (b *bed) compare(t *testing.T, name string, pairs int, q question) {
	t.Helper()
	known, unknown := b.measure(t, pairs, q)
	a, z, odds := known[pairs/2], unknown[pairs/2], auc(known, unknown)
	apart := 100 * (a - z).Abs().Seconds() / min(a, z).Seconds()
	t.Logf("%s: %d pairs, medians %v and %v, %.2f %% apart, AUC %.3f", name, pairs, a, z, apart, odds)
	if apart > 5 {
		t.Errorf("%s: medians of %v for a user and %v for nobody", name, a, z)
	}
	if odds < 0.45 || odds > 0.55 {
		t.Errorf("%s: whoever judges by the time is right in %.1f %%", name, 100*odds)
	}
}

// measure gives the times of the answers about a user and about nobody, sorted. They
// take turns, on connections of their own.
func (b *bed) measure(t *testing.T, pairs int, q question) (known, unknown []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	crowd(pairs, 16, func(i int) {
		nobody := fmt.Sprint("nobody", i)
		var of [2]time.Duration
		for turn := range of {
			who := (turn + i) % 2
			of[who] = b.probe(q.ask, []string{"frank", nobody}[who])
		}
		mu.Lock()
		defer mu.Unlock()
		known, unknown = append(known, of[0]), append(unknown, of[1])
	})
	slices.Sort(known)
	slices.Sort(unknown)
	if least := min(known[0], unknown[0]); least < q.floor {
		t.Fatalf("an answer after %v, or none", least)
	}
	return known, unknown
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
	nc net.Conn
	r  *bufio.Reader
}

// probe is the time of one answer, 0 when it was not the one to expect.
func (b *bed) probe(ask func(*prober, string) bool, user string) time.Duration {
	nc, err := net.Dial("tcp", b.addr("none"))
	if err != nil {
		return 0
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	p := &prober{nc, bufio.NewReader(nc)}
	p.hear()
	began := time.Now()
	if !ask(p, user) {
		return 0
	}
	return time.Since(began)
}

// hear is the next line, "" at the end.
func (p *prober) hear() string {
	line, _ := p.r.ReadString('\n')
	return line
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
	if err != nil {
		return false
	}
	talk := client.NewConversation()
	first, err := talk.Step("")
	if err != nil {
		return false
	}
	challenge := strings.TrimPrefix(p.ask("a AUTHENTICATE SCRAM-SHA-256 "+coded(first)), "+ ")
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(challenge))
	if err != nil {
		return false
	}
	final, err := talk.Step(string(text))
	if err != nil {
		return false
	}
	return p.denied(coded(final))
}
