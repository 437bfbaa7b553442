package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// testTimeout bounds every wait of these tests.
const testTimeout = 20 * time.Second

// silenceTime is how long a read must return nothing to count as silence.
const silenceTime = 50 * time.Millisecond

// listen starts a target. Each call of accept returns its next connection.
func listen(t *testing.T) (address string, accept func() *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String(), func() *net.TCPConn {
		t.Helper()
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(testTimeout))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return setDeadline(t, conn)
	}
}

// setDeadline sets a connection's deadline and closes it when the test ends.
func setDeadline(t *testing.T, conn net.Conn) *net.TCPConn {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	return setDeadline(t, conn)
}

// startProxied starts a proxy and returns both ends of a connection through it.
func startProxied(t *testing.T) (p *Proxy, client, target *net.TCPConn) {
	t.Helper()
	address, accept := listen(t)
	p = Start(t, address)
	client = dial(t, p)
	return p, client, accept()
}

func send(t *testing.T, conn net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(conn, s); err != nil {
		t.Fatal(err)
	}
}

// expect reads exactly s.
func expect(t *testing.T, conn net.Conn, s string) {
	t.Helper()
	got := make([]byte, len(s))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != s {
		t.Fatalf("read %q, %v; want %q", got[:n], err, s)
	}
}

// expectSilence fails the test if a byte arrives within silenceTime.
func expectSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(silenceTime))
	b := make([]byte, 100)
	var timeout net.Error
	if n, err := conn.Read(b); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read %q, %v; want silence", b[:n], err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(testTimeout))
}

func expectReadError(t *testing.T, conn net.Conn, want error) {
	t.Helper()
	b := make([]byte, 100)
	if n, err := conn.Read(b); !errors.Is(err, want) {
		t.Fatalf("read %q, %v; want %v", b[:n], err, want)
	}
}

func TestWithoutRulesBytesPassBothWays(t *testing.T) {
	t.Parallel()
	_, client, target := startProxied(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, way := range [][2]*net.TCPConn{{client, target}, {target, client}} {
		sent := make(chan error, 1)
		go func() {
			_, err := way[0].Write(big)
			sent <- err
		}()
		got := make([]byte, len(big))
		if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, big) {
			t.Fatalf("1 MB did not arrive as sent: %v", err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func TestAHalfCloseAndAResetPassThrough(t *testing.T) {
	t.Parallel()
	_, client, target := startProxied(t)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectReadError(t, target, io.EOF)
	send(t, target, "still here")
	expect(t, client, "still here")
	_ = target.SetLinger(0)
	_ = target.Close()
	expectReadError(t, client, syscall.ECONNRESET)
}

func TestFaultsHappenAtTheirOffset(t *testing.T) {
	t.Parallel()
	t.Run("corrupt and inject", func(t *testing.T) {
		p, client, target := startProxied(t)
		p.SetRules(ToTarget, Rules{Faults: []Fault{
			{Offset: 2, Action: Corrupt}, {Offset: 4, Action: Inject, Bytes: []byte("<>")}, {Offset: 4, Action: Corrupt},
		}})
		send(t, client, "abcdef")
		expect(t, target, "ab"+string([]byte{'c' ^ 0xff})+"d<>"+string([]byte{'e' ^ 0xff})+"f")
		send(t, target, "untouched")
		expect(t, client, "untouched")
	})
	t.Run("blackhole until the rules change", func(t *testing.T) {
		p, client, target := startProxied(t)
		p.SetRules(ToClient, Rules{Faults: []Fault{{Offset: 3, Action: Blackhole}}})
		send(t, target, "abcdef")
		expect(t, client, "abc")
		expectSilence(t, client)
		p.SetRules(ToClient, Rules{})
		send(t, target, "ghi")
		expect(t, client, "ghi")
	})
	t.Run("half-close", func(t *testing.T) {
		p, client, target := startProxied(t)
		p.SetRules(ToClient, Rules{Faults: []Fault{{Offset: 3, Action: HalfClose}}})
		send(t, target, "abcdef")
		expect(t, client, "abc")
		expectReadError(t, client, io.EOF)
		send(t, client, "other way")
		expect(t, target, "other way")
		send(t, target, "is read, not reset")
	})
	t.Run("reset", func(t *testing.T) {
		p, client, target := startProxied(t)
		p.SetRules(ToTarget, Rules{Faults: []Fault{{Offset: 3, Action: Reset}}})
		send(t, client, "abcdef")
		expect(t, target, "abc")
		expectReadError(t, target, syscall.ECONNRESET)
		expectReadError(t, client, syscall.ECONNRESET)
	})
}

func TestStalledSenderSeesAClosedWindowUntilTheRulesChange(t *testing.T) {
	t.Parallel()
	p, client, target := startProxied(t)
	p.SetRules(ToTarget, Rules{Faults: []Fault{{Offset: 2, Action: Stall}}})
	send(t, client, "ab")
	expect(t, target, "ab")
	// More than all socket buffers on the path can hold.
	big := bytes.Repeat([]byte{'x'}, 64<<20)
	_ = client.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := client.Write(big)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("wrote %d bytes, %v; want a time-out", n, err)
	}
	expectSilence(t, target)
	p.SetRules(ToTarget, Rules{})
	if got, err := io.CopyN(io.Discard, target, int64(n)); err != nil {
		t.Fatalf("%d of %d bytes arrived: %v", got, n, err)
	}
}

func TestRuleReachesAnIdleConnection(t *testing.T) {
	t.Parallel()
	p, client, target := startProxied(t)
	send(t, client, "so")
	expect(t, target, "so")
	p.SetRules(ToClient, Rules{Faults: []Fault{{Action: Inject, Bytes: []byte("* BYE\r\n")}}})
	expect(t, client, "* BYE\r\n")
	p.SetRules(ToTarget, Rules{Faults: []Fault{{Action: HalfClose}}})
	expectReadError(t, target, io.EOF)
	p.ResetConns()
	expectReadError(t, client, syscall.ECONNRESET)
}

func TestLatencyBandwidthAndSliceSlowOneDirection(t *testing.T) {
	t.Parallel()
	p, client, target := startProxied(t)
	p.SetRules(ToTarget, Rules{Latency: 30 * time.Millisecond, Slice: 2})
	start := time.Now()
	send(t, client, "abcdef")
	expect(t, target, "abcdef")
	if elapsed := time.Since(start); elapsed < 90*time.Millisecond {
		t.Errorf("three slices took %v", elapsed)
	}
	p.SetRules(ToTarget, Rules{Bandwidth: 10_000})
	start = time.Now()
	send(t, client, string(make([]byte, 1000)))
	expect(t, target, string(make([]byte, 1000)))
	// The proxy sleeps after each chunk of 500 bytes, and the last sleep does not delay the
	// data.
	if elapsed := time.Since(start); elapsed < 50*time.Millisecond {
		t.Errorf("1,000 bytes at 10,000 a second took %v", elapsed)
	}
	send(t, target, "fast")
	expect(t, client, "fast")
}

func TestAcceptModeCanChange(t *testing.T) {
	t.Parallel()
	address, accept := listen(t)
	p := Start(t, address)
	first := dial(t, p)
	firstTarget := accept()

	p.SetAcceptMode(Hang)
	hung := dial(t, p)
	send(t, hung, "hello")
	expectSilence(t, hung)

	p.SetAcceptMode(Refuse)
	if conn, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial with mode Refuse: %v, %v", conn, err)
	}
	send(t, first, "older connections stay")
	expect(t, firstTarget, "older connections stay")

	p.SetAcceptMode(Accept)
	reopened := dial(t, p)
	send(t, reopened, "hello")
	expect(t, accept(), "hello")
	if n := p.ConnCount(); n != 3 {
		t.Errorf("%d pairs, want 3", n)
	}
}

func TestAClientOfAnUnreachableTargetIsReset(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	conn, err := net.Dial("tcp", Start(t, l.Addr().String()).Address())
	if err == nil {
		expectReadError(t, setDeadline(t, conn), syscall.ECONNRESET)
	} else if !errors.Is(err, syscall.ECONNRESET) { // the reset may arrive before Dial returns
		t.Fatal(err)
	}
}

func TestCloseEndsEveryConnectionAndWaits(t *testing.T) {
	t.Parallel()
	p, client, target := startProxied(t)
	p.SetRules(ToTarget, Rules{Faults: []Fault{{Action: Stall}}, Latency: time.Hour})
	p.SetRules(ToClient, Rules{Latency: time.Hour})
	send(t, target, "late")
	p.Close()
	p.Close()
	if n := p.ConnCount(); n != 0 {
		t.Errorf("%d pairs are left", n)
	}
	expectReadError(t, client, syscall.ECONNRESET)
}
