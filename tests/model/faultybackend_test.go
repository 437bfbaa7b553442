package model

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// corruption changes commands and responses between a gateway and its backend. Each
// function gets a complete text and returns what to pass on.
type corruption struct {
	onCommand  func(commands string) string
	onResponse func(response string) string
}

// faultyBackend is a proxy to a backend that applies a corruption.
type faultyBackend struct {
	// Set once.
	corruption corruption
	target     string
	listener   net.Listener
	wg         sync.WaitGroup // acceptLoop and every relay

	mu    sync.Mutex
	conns []net.Conn // Guarded by mu.
}

func startFaultyBackend(t *testing.T, target string, corrupt corruption) *faultyBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultyBackend{corruption: corrupt, target: target, listener: l}
	p.wg.Go(p.acceptLoop)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

// acceptLoop accepts connections until the listener is closed.
func (p *faultyBackend) acceptLoop() {
	for {
		clientConn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		backendConn, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = clientConn.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, clientConn, backendConn)
		p.mu.Unlock()
		p.wg.Go(func() { p.relayCommands(clientConn, backendConn) })
		p.wg.Go(func() { p.relayResponses(clientConn, backendConn) })
	}
}

// relayCommands relays each read of a client as one text, until the client closes.
func (p *faultyBackend) relayCommands(clientConn, backendConn net.Conn) {
	defer backendConn.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := clientConn.Read(buf)
		text := string(buf[:n])
		if p.corruption.onCommand != nil {
			text = p.corruption.onCommand(text)
		}
		if _, failed := io.WriteString(backendConn, text); err != nil || failed != nil {
			return
		}
	}
}

// relayResponses relays responses until the server closes.
func (p *faultyBackend) relayResponses(clientConn, backendConn net.Conn) {
	defer clientConn.Close()
	r := bufio.NewReader(backendConn)
	for {
		var all strings.Builder
		for {
			line, err := r.ReadString('\n')
			all.WriteString(line)
			n, literal := literalSize(strings.TrimSuffix(line, "\r\n"))
			if err == nil && literal {
				_, err = io.CopyN(&all, r, int64(n))
			}
			if err != nil {
				return
			}
			if !literal {
				break
			}
		}
		text := all.String()
		if p.corruption.onResponse != nil {
			text = p.corruption.onResponse(text)
		}
		if _, err := io.WriteString(clientConn, text); err != nil {
			return
		}
	}
}

// everyNth returns a function that returns true in every nth call.
func everyNth(n int) func() bool {
	var mu sync.Mutex
	count := 0
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		count++
		return count%n == 0
	}
}

func TestModelDetectsFaultyBackends(t *testing.T) {
	backend := startBackend(t)
	var serial atomic.Uint64
	dropSome := func(pattern string) func(string) string {
		match, due := regexp.MustCompile(pattern), everyNth(5)
		return func(response string) string {
			if match.MatchString(response) && due() {
				return ""
			}
			return response
		}
	}
	rewrite := func(pattern, with string) func(string) string {
		match := regexp.MustCompile(pattern)
		return func(text string) string { return match.ReplaceAllString(text, with) }
	}
	for _, c := range []struct {
		name       string
		corruption corruption
	}{
		{"unreported flags", corruption{onResponse: dropSome(`^\* \d+ FETCH \((MODSEQ \(\d+\) )?FLAGS \([^)]*\)\)\r\n$`)}},
		{"unreported arrivals", corruption{onResponse: dropSome(`^\* \d+ EXISTS`)}},
		{"unreported expunges", corruption{onResponse: dropSome(`^\* (\d+ EXPUNGE|VANISHED \d)`)}},
		{"unreported VANISHED (EARLIER)", corruption{onResponse: dropMatching(`^\* VANISHED \(EARLIER\)`)}},
		{"the wrong message is copied", corruption{onCommand: rewrite(` COPY \d+ `, ` COPY 1 `)}},
		{"a copy is made twice", corruption{
			onCommand:  rewrite(`^([a-z]\d+)( (?:UID )?COPY [0-9:,]+ \S+\r\n)$`, "zz1$2$1$2"),
			onResponse: dropMatching(`^zz1 .*`),
		}},
		{"a message is stored twice", corruption{
			onCommand:  rewrite(`(?s)^([a-z]\d+)( APPEND INBOX .*\{\d+\+\}\r\n.*\r\n)$`, "zz1$2$1$2"),
			onResponse: dropMatching(`^zz1 .*`),
		}},
		{"OK for a message that is not stored", corruption{
			onCommand:  rewrite(`(?s)^([a-z]\d+) APPEND INBOX .*\{\d+\+\}\r\n.*\r\n$`, "zz1 NOOP\r\n$1 NOOP\r\n"),
			onResponse: dropMatching(`^zz1 .*`),
		}},
		{"an expunge is reported too early", corruption{onResponse: rewrite(`^(\* \d+ FETCH \(UID \d+\))\r\n$`, "* 1 EXPUNGE\r\n$1\r\n")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := startFaultyBackend(t, backend.address, c.corruption)
			faultProxy := startFaultProxy(t, l.listener.Addr().String())
			const tries = 6
			for seed := range uint64(tries) {
				c := Config{
					Mode: Direct, Faults: NoFaults, Turns: 200, Seed: seed + 1, Serial: serial.Add(1), TranscriptLines: 1,
					BackendAddress: backend.address, TestedAddress: faultProxy.Address(),
				}
				err := backend.addUsers(c.Users()...)
				if err != nil {
					t.Fatal(err)
				}
				w, err := NewSimulation(c, faultProxy)
				if err != nil {
					t.Fatal(err)
				}
				var v *Violation
				if _, err = w.Run(context.Background()); errors.As(err, &v) {
					t.Logf("seed %d: %v", seed+1, v)
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
			t.Errorf("no violation in %d seeds", tries)
		})
	}
}

// dropMatching returns a function that drops matching responses.
func dropMatching(pattern string) func(string) string {
	match := regexp.MustCompile(pattern)
	return func(response string) string {
		if match.MatchString(response) {
			return ""
		}
		return response
	}
}
