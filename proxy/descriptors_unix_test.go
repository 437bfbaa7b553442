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
	"time"

	"golang.org/x/sys/unix"
)

// fewDescriptors is the limit that the other process of this test sets itself.
const fewDescriptors = 256

// TestC11DescriptorsThatRunOutStopNobodyForLong has a gateway in a process of
// its own, which does what it reads: "fill" takes every descriptor that is
// left, "free" gives them back, and each answers with what the process has cost.
func TestC11DescriptorsThatRunOutStopNobodyForLong(t *testing.T) {
	if os.Getenv("FEW_DESCRIPTORS") != "" {
		serveWithFewDescriptors(t)
		return
	}
	leavesNothing(t)
	gateway := startGateway(t)
	addr := gateway.order("")
	const slots = (fewDescriptors - reserved) / 2 / 2 // of those who have not logged in
	var greeted, refused int
	var conns []net.Conn
	for range 1000 {
		nc, line := hello(t, addr, 5*time.Second)
		conns = append(conns, nc)
		switch {
		case strings.HasPrefix(line, "* OK"):
			greeted++
		case line == "* BYE [UNAVAILABLE] Too many connections.\r\n":
			refused++
		default:
			t.Fatalf("heard %q", line)
		}
	}
	if greeted != slots || greeted+refused != len(conns) {
		t.Errorf("%d were greeted, want %d; %d were refused", greeted, slots, refused)
	}
	if cost := gateway.order("cost"); !strings.HasPrefix(cost, "can open a file") {
		t.Error(cost)
	}
	closeAll(conns)
	nc, line := gateway.untilGreeted(addr)
	if line == "" {
		t.Error("no place was given back")
	}
	_ = nc.Close()

	var cpu, lines, cpuAfter, linesAfter float64
	scan(t, gateway.order("fill"), &cpu, &lines)
	conns = conns[:0]
	for range 20 {
		nc, err := net.Dial("tcp", addr) // by the kernel: nobody accepts
		must(t, err)
		conns = append(conns, nc)
	}
	<-time.After(2 * time.Second)
	scan(t, gateway.order("cost"), &cpuAfter, &linesAfter)
	if spent := cpuAfter - cpu; spent > 0.4 {
		t.Errorf("%.2f s of CPU in 2 s of waiting", spent)
	}
	if said := linesAfter - lines; said < 1 || said > 4 {
		t.Errorf("%v log lines in 2 s", said)
	}
	gateway.order("free")
	freed := time.Now()
	for _, nc := range conns {
		if line := readLine(nc, 5*time.Second); !strings.HasPrefix(line, "* OK") {
			t.Errorf("heard %q", line)
		}
	}
	if took := time.Since(freed); took > 2*time.Second {
		t.Errorf("it took %v to recover", took)
	}
	closeAll(conns)
}

func closeAll(conns []net.Conn) {
	for _, nc := range conns {
		_ = nc.Close()
	}
}

func scan(t *testing.T, cost string, cpu, lines *float64) {
	t.Helper()
	_, words, _ := strings.Cut(cost, ": ")
	if _, err := fmt.Sscanf(words, "%f s, %f lines", cpu, lines); err != nil {
		t.Fatalf("%q: %v", cost, err)
	}
}

func hello(t *testing.T, addr string, limit time.Duration) (net.Conn, string) {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	must(t, err)
	t.Cleanup(func() { _ = nc.Close() })
	return nc, readLine(nc, limit)
}

func readLine(nc net.Conn, limit time.Duration) string {
	_ = nc.SetReadDeadline(time.Now().Add(limit))
	line, _ := bufio.NewReader(nc).ReadString('\n')
	return line
}

// other is the other process.
type other struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func startGateway(t *testing.T) *other {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$") // ourselves
	cmd.Env = append(os.Environ(), "FEW_DESCRIPTORS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	o := &other{t, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = in.Close()
		rest, _ := io.ReadAll(o.out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the gateway's process: %v\n%s", err, rest)
		}
	})
	return o
}

// order sends an order and returns the answer.
func (o *other) order(order string) string {
	o.t.Helper()
	if order != "" {
		_, err := io.WriteString(o.in, order+"\n")
		must(o.t, err)
	}
	line, err := o.out.ReadString('\n')
	must(o.t, err)
	return strings.TrimSpace(line)
}

// untilGreeted connects until there is a place, for two seconds at most.
func (o *other) untilGreeted(addr string) (nc net.Conn, line string) {
	o.t.Helper()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if nc, line = hello(o.t, addr, time.Second); strings.HasPrefix(line, "* OK") {
			return nc, line
		}
	}
	return nc, ""
}

// serveWithFewDescriptors is the other process; it ends with its input.
func serveWithFewDescriptors(t *testing.T) {
	limit := unix.Rlimit{Cur: fewDescriptors, Max: fewDescriptors}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	b := openBed(t, deadAddress, func(s *setup) { s.cfg.MaxConnections = 100_000 }) // more than there can be
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
		}
		f, err := os.Open(os.DevNull)
		word := "can open a file"
		if err != nil {
			word = "can open no file"
		}
		_ = f.Close()
		var use unix.Rusage
		must(t, unix.Getrusage(unix.RUSAGE_SELF, &use))
		cpu := time.Duration(use.Utime.Nano() + use.Stime.Nano()).Seconds()
		fmt.Printf("%s: %.3f s, %d lines\n", word, cpu, strings.Count(b.logs.String(), `"msg":"accept"`))
	}
}
