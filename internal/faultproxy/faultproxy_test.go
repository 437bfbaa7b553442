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

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// quiet is how long nothing must arrive to be believed lost.
const quiet = 50 * time.Millisecond

// listen is a target whose accepted connections the test takes one by one.
func listen(t *testing.T) (address string, accept func() *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String(), func() *net.TCPConn {
		t.Helper()
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return bounded(t, conn)
	}
}

// bounded gives a connection an end, in time and with the test.
func bounded(t *testing.T, conn net.Conn) *net.TCPConn {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
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
	return bounded(t, conn)
}

// through starts a proxy and gives both ends of one connection through it.
func through(t *testing.T) (p *Proxy, client, target *net.TCPConn) {
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

// expectSilence reads nothing for a while.
func expectSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(quiet))
	b := make([]byte, 100)
	var timeout net.Error
	if n, err := conn.Read(b); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read %q, %v; want silence", b[:n], err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
}

func expectEnd(t *testing.T, conn net.Conn, want error) {
	t.Helper()
	b := make([]byte, 100)
	if n, err := conn.Read(b); !errors.Is(err, want) {
		t.Fatalf("read %q, %v; want %v", b[:n], err, want)
	}
}

func TestWithoutRulesEverythingPassesBothWays(t *testing.T) {
	t.Parallel()
	_, client, target := through(t)
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
	_, client, target := through(t)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, target, io.EOF)
	send(t, target, "still here")
	expect(t, client, "still here")
	_ = target.SetLinger(0)
	_ = target.Close()
	expectEnd(t, client, syscall.ECONNRESET)
}

func TestFaultsHappenAtTheirByte(t *testing.T) {
	t.Parallel()
	t.Run("corrupt and inject", func(t *testing.T) {
		p, client, target := through(t)
		p.Set(ToTarget, Rules{Faults: []Fault{
			{At: 2, Do: Corrupt}, {At: 4, Do: Inject, Bytes: []byte("<>")}, {At: 4, Do: Corrupt},
		}})
		send(t, client, "abcdef")
		expect(t, target, "ab"+string([]byte{'c' ^ 0xff})+"d<>"+string([]byte{'e' ^ 0xff})+"f")
		send(t, target, "untouched")
		expect(t, client, "untouched")
	})
	t.Run("blackhole until the rules change", func(t *testing.T) {
		p, client, target := through(t)
		p.Set(ToClient, Rules{Faults: []Fault{{At: 3, Do: Blackhole}}})
		send(t, target, "abcdef")
		expect(t, client, "abc")
		expectSilence(t, client)
		p.Set(ToClient, Rules{})
		send(t, target, "ghi")
		expect(t, client, "ghi")
	})
	t.Run("half-close", func(t *testing.T) {
		p, client, target := through(t)
		p.Set(ToClient, Rules{Faults: []Fault{{At: 3, Do: HalfClose}}})
		send(t, target, "abcdef")
		expect(t, client, "abc")
		expectEnd(t, client, io.EOF)
		send(t, client, "other way")
		expect(t, target, "other way")
		send(t, target, "is read, not reset")
	})
	t.Run("reset", func(t *testing.T) {
		p, client, target := through(t)
		p.Set(ToTarget, Rules{Faults: []Fault{{At: 3, Do: Reset}}})
		send(t, client, "abcdef")
		expect(t, target, "abc")
		expectEnd(t, target, syscall.ECONNRESET)
		expectEnd(t, client, syscall.ECONNRESET)
	})
}

func TestAStalledSenderMeetsAClosedWindowUntilTheRulesChange(t *testing.T) {
	t.Parallel()
	p, client, target := through(t)
	p.Set(ToTarget, Rules{Faults: []Fault{{At: 2, Do: Stall}}})
	send(t, client, "ab")
	expect(t, target, "ab")
	// More than all the socket buffers on the way can hold.
	big := bytes.Repeat([]byte{'x'}, 64<<20)
	_ = client.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := client.Write(big)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("wrote %d bytes, %v; want a time-out", n, err)
	}
	expectSilence(t, target)
	p.Set(ToTarget, Rules{})
	if got, err := io.CopyN(io.Discard, target, int64(n)); err != nil {
		t.Fatalf("%d of %d bytes arrived: %v", got, n, err)
	}
}

func TestARuleReachesAConnectionThatIsQuiet(t *testing.T) {
	t.Parallel()
	p, client, target := through(t)
	send(t, client, "so")
	expect(t, target, "so")
	p.Set(ToClient, Rules{Faults: []Fault{{Do: Inject, Bytes: []byte("* BYE\r\n")}}})
	expect(t, client, "* BYE\r\n")
	p.Set(ToTarget, Rules{Faults: []Fault{{Do: HalfClose}}})
	expectEnd(t, target, io.EOF)
	p.Reset()
	expectEnd(t, client, syscall.ECONNRESET)
}

func TestLatencyBandwidthAndSliceSlowOneDirection(t *testing.T) {
	t.Parallel()
	p, client, target := through(t)
	p.Set(ToTarget, Rules{Latency: 30 * time.Millisecond, Slice: 2})
	began := time.Now()
	send(t, client, "abcdef")
	expect(t, target, "abcdef")
	if took := time.Since(began); took < 90*time.Millisecond {
		t.Errorf("three slices took %v", took)
	}
	p.Set(ToTarget, Rules{Bandwidth: 10_000})
	began = time.Now()
	send(t, client, string(make([]byte, 1000)))
	expect(t, target, string(make([]byte, 1000)))
	// The last piece, of 500 bytes, is not waited for.
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("1,000 bytes at 10,000 a second took %v", took)
	}
	send(t, target, "fast")
	expect(t, client, "fast")
}

func TestTheDoorCanBeMuteClosedAndOpenedAgain(t *testing.T) {
	t.Parallel()
	address, accept := listen(t)
	p := Start(t, address)
	first := dial(t, p)
	firstTarget := accept()

	p.SetDoor(Mute)
	muted := dial(t, p)
	send(t, muted, "anybody?")
	expectSilence(t, muted)

	p.SetDoor(Closed)
	if conn, err := net.Dial("tcp", p.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dial a closed door: %v, %v", conn, err)
	}
	send(t, first, "older connections stay")
	expect(t, firstTarget, "older connections stay")

	p.SetDoor(Open)
	again := dial(t, p)
	send(t, again, "hello")
	expect(t, accept(), "hello")
	if n := p.Links(); n != 3 {
		t.Errorf("%d links, want 3", n)
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
		expectEnd(t, bounded(t, conn), syscall.ECONNRESET)
	} else if !errors.Is(err, syscall.ECONNRESET) { // it may come before Dial returns
		t.Fatal(err)
	}
}

func TestCloseEndsEveryConnectionAndWaits(t *testing.T) {
	t.Parallel()
	p, client, target := through(t)
	p.Set(ToTarget, Rules{Faults: []Fault{{Do: Stall}}, Latency: time.Hour})
	p.Set(ToClient, Rules{Latency: time.Hour})
	send(t, target, "late")
	p.Close()
	p.Close()
	if n := p.Links(); n != 0 {
		t.Errorf("%d links are left", n)
	}
	expectEnd(t, client, syscall.ECONNRESET)
}
