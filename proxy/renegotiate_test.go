package proxy

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// openssl connects to a listener with a program that can do what Go's client cannot: a line
// "K" updates its keys, a line "R" renegotiates.
func (b *harness) openssl(input string, args ...string) string {
	b.t.Helper()
	args = append([]string{"s_client", "-connect", b.addr("implicit"), "-servername", "localhost", "-crlf"}, args...)
	cmd := exec.Command("openssl", args...)
	in, err := cmd.StdinPipe()
	testkit.NoError(b.t, err)
	out := &opensslOutput{done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	testkit.NoError(b.t, cmd.Start())
	written, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(written)
		for line := range strings.Lines(input) {
			_, _ = io.WriteString(in, line)
			<-time.After(2 * time.Millisecond) // a key update is a line of its own only when it is read alone
		}
	}()
	go func() {
		defer close(ended)
		_ = cmd.Wait() // the exit status is irrelevant
	}()
	<-written
	select { // s_client ends with its input
	case <-out.done:
	case <-ended:
	case <-time.After(testbed.Timeout):
		b.t.Error("openssl neither shows an answer nor ends")
	}
	_ = in.Close()
	<-ended
	return string(out.text)
}

// opensslOutput collects the output of openssl. It is read after openssl has ended.
type opensslOutput struct {
	done chan struct{} // closed when the last command is answered
	text []byte
}

var answerPattern = regexp.MustCompile(`(?m)^[ab] (OK|NO|BAD) |^\* BYE `)

func (o *opensslOutput) Write(p []byte) (int, error) {
	before := answerPattern.Match(o.text)
	o.text = append(o.text, p...)
	if !before && answerPattern.Match(o.text) {
		close(o.done)
	}
	return len(p), nil
}

func TestKeyUpdatesDoNotAffectOtherClients(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	out := b.openssl(strings.Repeat("K\n", 300)+"a LOGIN alice right\n", "-tls1_3")
	if !strings.Contains(out, "KEYUPDATE") || !strings.Contains(out, "a OK ") && !strings.Contains(out, "closed") && !strings.Contains(out, "alert") {
		t.Errorf("%.2000s", out)
	}
	c := b.dialGreeted("implicit")
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a OK …")
}

func TestRenegotiationIsRefused(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	out := b.openssl("R\nb NOOP\n", "-tls1_2")
	if !strings.Contains(out, "RENEGOTIATING") || strings.Contains(out, "b OK") && !strings.Contains(out, "no renegotiation") {
		t.Errorf("%.2000s", out)
	}
	c := b.dialGreeted("implicit")
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a OK …")
}

// The largest ClientHellos and thousands of server names leave no memory in use.
func TestClientHellosLeakNoMemory(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	hello := func(i int) {
		nc, err := net.Dial("tcp", b.addr("implicit"))
		testkit.NoError(t, err)
		defer nc.Close()
		testkit.NoError(t, nc.SetDeadline(time.Now().Add(testbed.Timeout)))
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
	before := heapSize()
	for i := range 300 { // 20 MB of hellos
		hello(i)
	}
	testkit.Eventually(t, "the memory to come back", func() bool { return heapSize() < before+4<<20 })
}
