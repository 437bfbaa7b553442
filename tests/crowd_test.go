package tests

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// crowdOrders in the environment turns the test program into a crowd of clients:
// orders as JSON.
const crowdOrders = "IMAPGATE_TESTS_CROWD"

// orders say how a crowd visits: with a whole TLS handshake, a login and a
// logout each time.
type orders struct {
	Address, CA string
	Rate        float64       // visits begun in a second, whatever becomes of those before; 0: by Workers
	Workers     int           // each begins a visit when its last is over
	Long        time.Duration // in which visits are begun
}

// outcome is what a crowd saw.
type outcome struct {
	Offered int
	Served  int // logged in before Long was over
	Late    int // logged in after that
	Refused int // turned away by the gateway, in whatever way
	Failed  int // everything else

	ServedP50, ServedP99   time.Duration // connect to OK
	RefusedP50, RefusedP99 time.Duration // connect to knowing it
	FirstFailure           string
	Behind                 time.Duration // how much later than it should the last visit was begun
}

func (o outcome) String() string {
	return fmt.Sprintf("%d offered; %d served (p50 %v, p99 %v) and %d late; %d refused (p50 %v, p99 %v); %d failed %s; %v behind",
		o.Offered, o.Served, o.ServedP50.Round(time.Millisecond), o.ServedP99.Round(time.Millisecond), o.Late,
		o.Refused, o.RefusedP50.Round(time.Millisecond), o.RefusedP99.Round(time.Millisecond), o.Failed, o.FirstFailure,
		o.Behind.Round(time.Millisecond))
}

// sendCrowd lets a crowd visit, from a process of its own with one thread, so
// that it takes the gateway as little of the machine as it can.
func sendCrowd(t *testing.T, o orders) outcome {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	p, err := testbed.Start(t, testbed.Program(t, "env", "coreutils"), "GOMAXPROCS=1", crowdOrders+"="+string(text), os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); err != nil {
		t.Fatalf("a crowd of clients: %v\n%s", err, p.Output())
	}
	var seen outcome
	if err := json.Unmarshal([]byte(p.Output()), &seen); err != nil {
		t.Fatalf("a crowd of clients: %v\n%s", err, p.Output())
	}
	return seen
}

// crowd is the process.
type crowd struct {
	// Set once.
	orders orders
	end    time.Time
	tls    *tls.Config

	mu sync.Mutex
	// Guarded by mu.
	seen            outcome
	served, refused []time.Duration
}

// crowdProcess is what the test program does as a crowd.
func crowdProcess(text string) error {
	var c crowd
	if err := json.Unmarshal([]byte(text), &c.orders); err != nil {
		return err
	}
	pem, err := os.ReadFile(c.orders.CA)
	if err != nil {
		return err
	}
	c.tls = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", CurvePreferences: []tls.CurveID{tls.X25519}}
	c.tls.RootCAs.AppendCertsFromPEM(pem)
	began := time.Now()
	c.end = began.Add(c.orders.Long)
	var visitors sync.WaitGroup
	if c.orders.Rate == 0 {
		for w := range c.orders.Workers {
			visitors.Go(func() { c.work(w) })
		}
	}
	for i := 0; c.orders.Rate > 0; i++ {
		at := began.Add(time.Duration(float64(i) * float64(time.Second) / c.orders.Rate))
		if !at.Before(c.end) {
			break
		}
		<-time.After(time.Until(at))
		c.seen.Behind = time.Since(at)
		visitors.Go(func() { c.visit(i) })
	}
	visitors.Wait()
	c.seen.ServedP50, c.seen.ServedP99 = quantiles(c.served)
	c.seen.RefusedP50, c.seen.RefusedP99 = quantiles(c.refused)
	return json.NewEncoder(os.Stdout).Encode(c.seen)
}

// work visits one after the other until the time is over.
func (c *crowd) work(w int) {
	for i := w; time.Now().Before(c.end); i += c.orders.Workers {
		c.visit(i)
	}
}

// visit is one client: connect, log in, log out.
func (c *crowd) visit(i int) {
	began := time.Now()
	p, err := call(endpoint{address: c.orders.Address, tls: c.tls}, fmt.Sprintf("127.9.%d.%d", i/250%250, 1+i%250))
	if err == nil {
		err = p.ask(fmt.Sprintf("LOGIN user%d %s", i%5000, password))
	}
	took := time.Since(began)
	c.note(err, took)
	if p == nil {
		return
	}
	if err == nil {
		_ = p.ask("LOGOUT") // it was served, whatever becomes of the goodbye
	}
	_ = p.conn.Close()
}

func (c *crowd) note(err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen.Offered++
	switch {
	case err == nil && time.Now().After(c.end):
		c.seen.Late++
	case err == nil:
		c.seen.Served++
		c.served = append(c.served, took)
	case isRefusal(err):
		c.seen.Refused++
		c.refused = append(c.refused, took)
	default:
		c.seen.Failed++
		if c.seen.FirstFailure == "" {
			c.seen.FirstFailure = err.Error()
		}
	}
}

// isRefusal says whether the gateway has ended a visit on purpose: by an alert
// where no word could be read, or by a word.
func isRefusal(err error) bool {
	var alert *net.OpError
	text := err.Error()
	return errors.As(err, &alert) && strings.Contains(text, "remote error: tls: internal error") ||
		errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || strings.Contains(text, "[UNAVAILABLE]")
}

// quantiles are the median and the 99th of a hundred.
func quantiles(took []time.Duration) (p50, p99 time.Duration) {
	if len(took) == 0 {
		return 0, 0
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}
