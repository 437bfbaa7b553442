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

// loadSpecEnv in the environment turns the test program into a crowd of clients:
// orders as JSON.
const loadSpecEnv = "IMAPGATE_TESTS_CROWD"

// loadSpec say how a crowd visits: with a whole TLS handshake, a login and a
// logout each time.
type loadSpec struct {
	Address, CA string
	Rate        float64       // visits begun in a second, whatever becomes of those before; 0: by Workers
	Workers     int           // each begins a visit when its last is over
	Duration    time.Duration // in which visits are begun
}

// loadResult is what a crowd saw.
type loadResult struct {
	Offered int
	Served  int // logged in before Long was over
	Late    int // logged in after that
	Refused int // turned away by the gateway, in whatever way
	Failed  int // everything else

	ServedP50, ServedP99   time.Duration // connect to OK
	RefusedP50, RefusedP99 time.Duration // connect to knowing it
	FirstFailure           string
	Lag                    time.Duration // how much later than it should the last visit was begun
}

func (o loadResult) String() string {
	return fmt.Sprintf("%d offered; %d served (p50 %v, p99 %v) and %d late; %d refused (p50 %v, p99 %v); %d failed %s; %v behind",
		o.Offered, o.Served, o.ServedP50.Round(time.Millisecond), o.ServedP99.Round(time.Millisecond), o.Late,
		o.Refused, o.RefusedP50.Round(time.Millisecond), o.RefusedP99.Round(time.Millisecond), o.Failed, o.FirstFailure,
		o.Lag.Round(time.Millisecond))
}

// runLoad lets a crowd visit, from a process of its own with one thread, so
// that it takes the gateway as little of the machine as it can.
func runLoad(t *testing.T, o loadSpec) loadResult {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	p, err := testbed.Start(t, testbed.FindProgram(t, "env", "coreutils"), "GOMAXPROCS=1", loadSpecEnv+"="+string(text), os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Err(); err != nil {
		t.Fatalf("a crowd of clients: %v\n%s", err, p.Output())
	}
	var result loadResult
	if err := json.Unmarshal([]byte(p.Output()), &result); err != nil {
		t.Fatalf("a crowd of clients: %v\n%s", err, p.Output())
	}
	return result
}

// loadgen is the process.
type loadgen struct {
	// Set once.
	spec     loadSpec
	deadline time.Time
	tls      *tls.Config

	mu sync.Mutex
	// Guarded by mu.
	result          loadResult
	served, refused []time.Duration
}

// loadgenMain is what the test program does as a crowd.
func loadgenMain(text string) error {
	var c loadgen
	if err := json.Unmarshal([]byte(text), &c.spec); err != nil {
		return err
	}
	pem, err := os.ReadFile(c.spec.CA)
	if err != nil {
		return err
	}
	c.tls = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", CurvePreferences: []tls.CurveID{tls.X25519}}
	c.tls.RootCAs.AppendCertsFromPEM(pem)
	start := time.Now()
	c.deadline = start.Add(c.spec.Duration)
	var workers sync.WaitGroup
	if c.spec.Rate == 0 {
		for w := range c.spec.Workers {
			workers.Go(func() { c.runWorker(w) })
		}
	}
	for i := 0; c.spec.Rate > 0; i++ {
		at := start.Add(time.Duration(float64(i) * float64(time.Second) / c.spec.Rate))
		if !at.Before(c.deadline) {
			break
		}
		<-time.After(time.Until(at))
		c.result.Lag = time.Since(at)
		workers.Go(func() { c.runLogin(i) })
	}
	workers.Wait()
	c.result.ServedP50, c.result.ServedP99 = quantiles(c.served)
	c.result.RefusedP50, c.result.RefusedP99 = quantiles(c.refused)
	return json.NewEncoder(os.Stdout).Encode(c.result)
}

// runWorker visits one after the other until the time is over.
func (c *loadgen) runWorker(w int) {
	for i := w; time.Now().Before(c.deadline); i += c.spec.Workers {
		c.runLogin(i)
	}
}

// runLogin is one client: connect, log in, log out.
func (c *loadgen) runLogin(i int) {
	began := time.Now()
	p, err := dialLight(endpoint{address: c.spec.Address, tls: c.tls}, fmt.Sprintf("127.9.%d.%d", i/250%250, 1+i%250))
	if err == nil {
		err = p.exec(fmt.Sprintf("LOGIN user%d %s", i%5000, password))
	}
	took := time.Since(began)
	c.recordResult(err, took)
	if p == nil {
		return
	}
	if err == nil {
		_ = p.exec("LOGOUT") // it was served, whatever becomes of the goodbye
	}
	_ = p.conn.Close()
}

func (c *loadgen) recordResult(err error, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.Offered++
	switch {
	case err == nil && time.Now().After(c.deadline):
		c.result.Late++
	case err == nil:
		c.result.Served++
		c.served = append(c.served, took)
	case isRefusal(err):
		c.result.Refused++
		c.refused = append(c.refused, took)
	default:
		c.result.Failed++
		if c.result.FirstFailure == "" {
			c.result.FirstFailure = err.Error()
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
