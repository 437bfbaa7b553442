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

// lie is what stands between clients and a server and does wrong. Each part gets
// what is said whole and gives what is passed on.
type lie struct {
	up   func(commands string) string
	down func(response string) string
}

// liar passes everything on, except where it lies.
type liar struct {
	// Set once.
	lie      lie
	target   string
	listener net.Listener
	wg       sync.WaitGroup // accept and every connection

	mu    sync.Mutex
	conns []net.Conn // Guarded by mu.
}

func startLiar(t *testing.T, target string, what lie) *liar {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &liar{lie: what, target: target, listener: l}
	p.wg.Go(p.accept)
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

// accept ends when the listener closes.
func (p *liar) accept() {
	for {
		near, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		far, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = near.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, near, far)
		p.mu.Unlock()
		p.wg.Go(func() { p.forth(near, far) })
		p.wg.Go(func() { p.back(near, far) })
	}
}

// forth passes what a client writes at once; it ends with the client.
func (p *liar) forth(near, far net.Conn) {
	defer far.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := near.Read(buf)
		said := string(buf[:n])
		if p.lie.up != nil {
			said = p.lie.up(said)
		}
		if _, failed := io.WriteString(far, said); err != nil || failed != nil {
			return
		}
	}
}

// back passes responses; it ends with the server.
func (p *liar) back(near, far net.Conn) {
	defer near.Close()
	r := bufio.NewReader(far)
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
		said := all.String()
		if p.lie.down != nil {
			said = p.lie.down(said)
		}
		if _, err := io.WriteString(near, said); err != nil {
			return
		}
	}
}

// nowAndThen says yes once in n times.
func nowAndThen(n int) func() bool {
	var mu sync.Mutex
	count := 0
	return func() bool {
		mu.Lock()
		defer mu.Unlock()
		count++
		return count%n == 0
	}
}

func TestTheModelFindsOutWhoLies(t *testing.T) {
	backend := startBackend(t)
	var serial atomic.Uint64
	swallow := func(pattern string) func(string) string {
		match, due := regexp.MustCompile(pattern), nowAndThen(5)
		return func(response string) string {
			if match.MatchString(response) && due() {
				return ""
			}
			return response
		}
	}
	rewrite := func(pattern, with string) func(string) string {
		match := regexp.MustCompile(pattern)
		return func(said string) string { return match.ReplaceAllString(said, with) }
	}
	for _, c := range []struct {
		name string
		lie  lie
	}{
		{"flags that are not told", lie{down: swallow(`^\* \d+ FETCH \((MODSEQ \(\d+\) )?FLAGS \([^)]*\)\)\r\n$`)}},
		{"arrivals that are not told", lie{down: swallow(`^\* \d+ EXISTS`)}},
		{"expunges that are not told", lie{down: swallow(`^\* (\d+ EXPUNGE|VANISHED \d)`)}},
		{"what happened meanwhile is not told", lie{down: drop(`^\* VANISHED \(EARLIER\)`)}},
		{"the wrong message is copied", lie{up: rewrite(` COPY \d+ `, ` COPY 1 `)}},
		{"a copy is made twice", lie{
			up:   rewrite(`^([a-z]\d+)( (?:UID )?COPY [0-9:,]+ \S+\r\n)$`, "zz1$2$1$2"),
			down: drop(`^zz1 .*`),
		}},
		{"a message is stored twice", lie{
			up:   rewrite(`(?s)^([a-z]\d+)( APPEND INBOX .*\{\d+\+\}\r\n.*\r\n)$`, "zz1$2$1$2"),
			down: drop(`^zz1 .*`),
		}},
		{"OK for a message that is not stored", lie{
			up:   rewrite(`(?s)^([a-z]\d+) APPEND INBOX .*\{\d+\+\}\r\n.*\r\n$`, "zz1 NOOP\r\n$1 NOOP\r\n"),
			down: drop(`^zz1 .*`),
		}},
		{"an expunge is told too early", lie{down: rewrite(`^(\* \d+ FETCH \(UID \d+\))\r\n$`, "* 1 EXPUNGE\r\n$1\r\n")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := startLiar(t, backend.address, c.lie)
			breaker := startBreaker(t, l.listener.Addr().String())
			const tries = 6
			for seed := range uint64(tries) {
				c := Config{
					Mode: Direct, Faults: NoFaults, Turns: 200, Seed: seed + 1, Serial: serial.Add(1), Lines: 1,
					Backend: backend.address, Proxied: breaker.Address(),
				}
				err := backend.join(c.Users()...)
				if err != nil {
					t.Fatal(err)
				}
				w, err := NewWorld(c, breaker)
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
			t.Errorf("nothing was noticed in %d seeds", tries)
		})
	}
}

// drop passes nothing of a kind on.
func drop(pattern string) func(string) string {
	match := regexp.MustCompile(pattern)
	return func(response string) string {
		if match.MatchString(response) {
			return ""
		}
		return response
	}
}
