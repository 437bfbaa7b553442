package proxy

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// openssl talks TLS to a listener by a program that can do what Go's client
// cannot: a line "K" updates its keys, a line "R" renegotiates.
func (b *bed) openssl(input string, args ...string) string {
	b.t.Helper()
	args = append([]string{"s_client", "-connect", b.addr("implicit"), "-servername", "localhost", "-crlf"}, args...)
	cmd := exec.Command("openssl", args...)
	in, err := cmd.StdinPipe()
	must(b.t, err)
	go func() {
		defer in.Close()
		for line := range strings.Lines(input) {
			_, _ = io.WriteString(in, line)
			<-time.After(2 * time.Millisecond) // a key update is a line of its own only when it is read alone
		}
		<-time.After(300 * time.Millisecond) // s_client ends with its input
	}()
	out, _ := cmd.CombinedOutput() // its status says nothing
	return string(out)
}

func TestA7KeyUpdatesChangeNothingForOthers(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	out := b.openssl(strings.Repeat("K\n", 300)+"a LOGIN alice right\n", "-tls1_3")
	if !strings.Contains(out, "KEYUPDATE") || !strings.Contains(out, "a OK ") && !strings.Contains(out, "closed") && !strings.Contains(out, "alert") {
		t.Errorf("%.2000s", out)
	}
	c := b.greeted("implicit")
	c.say("a LOGIN alice right\r\n")
	c.hear("a OK …")
}

func TestA7RenegotiationIsRefused(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	out := b.openssl("R\nb NOOP\n", "-tls1_2")
	if !strings.Contains(out, "RENEGOTIATING") || strings.Contains(out, "b OK") && !strings.Contains(out, "no renegotiation") {
		t.Errorf("%.2000s", out)
	}
	c := b.greeted("implicit")
	c.say("a LOGIN alice right\r\n")
	c.hear("a OK …")
}

// A ClientHello as long as a handshake message can say, and thousands of names,
// leave nothing behind.
func TestA7HellosOfEverySizeAndNameLeaveNoMemory(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	hello := func(i int) {
		nc, err := net.Dial("tcp", b.addr("implicit"))
		must(t, err)
		defer nc.Close()
		must(t, nc.SetDeadline(time.Now().Add(testbed.Patience)))
		size := 0xff00
		message := append([]byte{1, 0, byte(size >> 8), byte(size)}, strings.Repeat(fmt.Sprintf("name%d.example", i), size/8)[:size]...)
		for len(message) > 0 {
			n := min(len(message), 1<<14)
			record := append([]byte{22, 3, 1, byte(n >> 8), byte(n)}, message[:n]...)
			if _, err := nc.Write(record); err != nil {
				return
			}
			message = message[n:]
		}
		_, _ = io.Copy(io.Discard, nc)
	}
	hello(0)
	before := heap()
	for i := range 300 { // 20 MB of hellos
		hello(i)
	}
	within(t, "the memory to come back", func() bool { return heap() < before+4<<20 })
}
