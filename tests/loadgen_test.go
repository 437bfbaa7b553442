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

// loadSpecEnv is the environment variable that turns the test program into a load
// generator. Its value is a loadSpec as JSON.
const loadSpecEnv = "IMAPGATE_TESTS_LOADGEN"

// loadSpec configures a load. Each client makes a full TLS handshake, a login and a logout.
type loadSpec struct {
	Address, CA string
	Rate        float64       // clients started per second, independent of earlier ones; 0: by Workers
	Workers     int           // each starts a client when its previous one is done
	Duration    time.Duration // during which clients are started
}

// loadResult is the result of a load.
type loadResult struct {
	Offered int
	Served  int // logged in in time
	Late    int // logged in later
	Refused int // refused by the gateway, in any way
	Failed  int // all others

	ServedP50, ServedP99   time.Duration // from connect to OK
	RefusedP50, RefusedP99 time.Duration // from connect to the refusal
	FirstFailure           string
	Lag                    time.Duration // delay of the last start
}

func (o loadResult) String() string {
	return fmt.Sprintf("%d offered; %d served (p50 %v, p99 %v) and %d late; %d refused (p50 %v, p99 %v); %d failed %s; start delayed by %v",
		o.Offered, o.Served, o.ServedP50.Round(time.Millisecond), o.ServedP99.Round(time.Millisecond), o.Late,
		o.Refused, o.RefusedP50.Round(time.Millisecond), o.RefusedP99.Round(time.Millisecond), o.Failed, o.FirstFailure,
		o.Lag.Round(time.Millisecond))
}

// runLoad runs a load in a separate process with one thread, so that it takes as little
// CPU from the gateway as possible.
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
		t.Fatalf("load generator: %v\n%s", err, p.Output())
	}
	var result loadResult
	if err := json.Unmarshal([]byte(p.Output()), &result); err != nil {
		t.Fatalf("load generator: %v\n%s", err, p.Output())
	}
	return result
}

// loadgen is the state of the load generator process.
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

// loadgenMain runs the test program as a load generator.
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

// runWorker runs one client after the other until the time is over.
func (c *loadgen) runWorker(w int) {
	for i := w; time.Now().Before(c.deadline); i += c.spec.Workers {
		c.runLogin(i)
	}
}

// runLogin runs one client: it connects, logs in and logs out.
func (c *loadgen) runLogin(i int) {
	start := time.Now()
	p, err := dialLight(endpoint{address: c.spec.Address, tls: c.tls}, fmt.Sprintf("127.9.%d.%d", i/250%250, 1+i%250))
	if err == nil {
		err = p.exec(fmt.Sprintf("LOGIN user%d %s", i%5000, password))
	}
	elapsed := time.Since(start)
	c.recordResult(err, elapsed)
	if p == nil {
		return
	}
	if err == nil {
		_ = p.exec("LOGOUT") // the result does not matter
	}
	_ = p.conn.Close()
}

func (c *loadgen) recordResult(err error, elapsed time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.Offered++
	switch {
	case err == nil && time.Now().After(c.deadline):
		c.result.Late++
	case err == nil:
		c.result.Served++
		c.served = append(c.served, elapsed)
	case isRefusal(err):
		c.result.Refused++
		c.refused = append(c.refused, elapsed)
	default:
		c.result.Failed++
		if c.result.FirstFailure == "" {
			c.result.FirstFailure = err.Error()
		}
	}
}

// isRefusal reports whether the gateway has refused a client, by a response or, before it
// could send one, by a TLS alert.
func isRefusal(err error) bool {
	var alert *net.OpError
	text := err.Error()
	return errors.As(err, &alert) && strings.Contains(text, "remote error: tls: internal error") ||
		errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || strings.Contains(text, "[UNAVAILABLE]")
}

// quantiles returns the median and the 99th percentile.
func quantiles(latencies []time.Duration) (p50, p99 time.Duration) {
	if len(latencies) == 0 {
		return 0, 0
	}
	slices.Sort(latencies)
	return latencies[len(latencies)/2], latencies[len(latencies)*99/100]
}
