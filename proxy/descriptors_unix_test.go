//go:build unix

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"imapgate/internal/descriptors"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// fewDescriptors is the limit that this test's second process sets itself.
const fewDescriptors = 256

// TestDescriptorExhaustionRecovers runs a gateway in a second process that executes
// commands: "fill" opens every descriptor left, "free" closes them, and each returns the
// current state.
func TestDescriptorExhaustionRecovers(t *testing.T) {
	if os.Getenv("FEW_DESCRIPTORS") != "" {
		serveWithFewDescriptors(t)
		return
	}
	checkLeaks(t)
	gateway := startGateway(t)
	addr := gateway.command("")
	const slots = (fewDescriptors - descriptors.Reserved) / 2 / 2 // before the login
	var greeted, refused int
	var conns []net.Conn
	for range 1000 {
		nc, line := dialGreeting(t, addr, testbed.Timeout)
		conns = append(conns, nc)
		switch {
		case strings.HasPrefix(line, "* OK"):
			greeted++
		case line == "* BYE [UNAVAILABLE] Too many connections.\r\n":
			refused++
		default:
			t.Fatalf("received %q", line)
		}
	}
	if greeted != slots || greeted+refused != len(conns) {
		t.Errorf("%d were greeted, want %d; %d were refused", greeted, slots, refused)
	}
	if can := gateway.command("try"); can != "can open a file" {
		t.Error(can)
	}
	closeAll(conns)
	nc, line := gateway.dialUntilGreeted(addr)
	if line == "" {
		t.Error("no slot was released")
	}
	_ = nc.Close()

	if can := gateway.command("fill"); can != "can open no file" {
		t.Error(can)
	}
	conns = conns[:0]
	for range 20 {
		nc, err := net.Dial("tcp", addr) // accepted by the kernel only
		testkit.NoError(t, err)
		conns = append(conns, nc)
	}
	testkit.Eventually(t, "the error to be logged", func() bool { return gateway.command("lines") != "0" })
	gateway.command("free")
	for _, nc := range conns {
		if line := readLine(nc, testbed.Timeout); !strings.HasPrefix(line, "* OK") {
			t.Errorf("received %q", line)
		}
	}
	closeAll(conns)
}

func closeAll(conns []net.Conn) {
	for _, nc := range conns {
		_ = nc.Close()
	}
}

// The test simulates a minute without descriptors.
func TestAcceptFailuresBackOffAndLogRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var trouble backoff
		start, tries, lines := time.Now(), 0, 0
		for ; time.Since(start) < time.Minute; tries++ {
			trouble.wait(t.Context(), func() { lines++ })
		}
		if tries > 70 || lines < 30 || lines > 60 {
			t.Errorf("%d tries and %d log lines in a minute", tries, lines)
		}
	})
}

func dialGreeting(t *testing.T, addr string, limit time.Duration) (net.Conn, string) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	return nc, readLine(nc, limit)
}

func readLine(nc net.Conn, limit time.Duration) string {
	_ = nc.SetReadDeadline(time.Now().Add(limit))
	line, _ := bufio.NewReader(nc).ReadString('\n')
	return line
}

// gatewayProcess is the second process.
type gatewayProcess struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func startGateway(t *testing.T) *gatewayProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$") // the test binary
	cmd.Env = append(os.Environ(), "FEW_DESCRIPTORS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	testkit.NoError(t, err)
	out, err := cmd.StdoutPipe()
	testkit.NoError(t, err)
	testkit.NoError(t, cmd.Start())
	o := &gatewayProcess{t, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = in.Close()
		rest, _ := io.ReadAll(o.out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the gateway's process: %v\n%s", err, rest)
		}
	})
	return o
}

// command sends a command and returns the answer.
func (o *gatewayProcess) command(cmd string) string {
	o.t.Helper()
	if cmd != "" {
		_, err := io.WriteString(o.in, cmd+"\n")
		testkit.NoError(o.t, err)
	}
	line, err := o.out.ReadString('\n')
	testkit.NoError(o.t, err)
	return strings.TrimSpace(line)
}

// dialUntilGreeted connects until a slot is free.
func (o *gatewayProcess) dialUntilGreeted(addr string) (nc net.Conn, line string) {
	o.t.Helper()
	for end := time.Now().Add(testbed.Timeout); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if nc, line = dialGreeting(o.t, addr, testbed.Timeout); strings.HasPrefix(line, "* OK") {
			return nc, line
		}
	}
	return nc, ""
}

// serveWithFewDescriptors runs in the second process until its input ends.
func serveWithFewDescriptors(t *testing.T) {
	limit := unix.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}
	testkit.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	b := openHarness(t, refusingAddress, func(s *harnessConfig) { s.cfg.MaxConnections = 100_000 }) // more than the limit allows
	fmt.Println(b.addr("none"))
	var taken []*os.File
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		switch orders.Text() {
		case "fill":
			for f, err := os.Open(os.DevNull); err == nil; f, err = os.Open(os.DevNull) {
				taken = append(taken, f)
			}
		case "free":
			for _, f := range taken {
				_ = f.Close()
			}
			taken = nil
		case "lines":
			fmt.Println(strings.Count(b.logs.String(), `"msg":"accept"`))
			continue
		}
		f, err := os.Open(os.DevNull)
		word := "can open a file"
		if err != nil {
			word = "can open no file"
		}
		_ = f.Close()
		fmt.Println(word)
	}
}
