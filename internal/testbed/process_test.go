//go:build unix

package testbed

import (
	"errors"
	"imapgate/internal/testkit"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// ignoreTermScript starts a child that ignores SIGTERM, so that only killing the group
// ends it.
const ignoreTermScript = `trap '' TERM; sleep 600 & echo child $!; wait`

func TestStopEndsChildProcesses(t *testing.T) {
	p, err := Start(t, FindProgram(t, "sh", "dash"), "-c", `sh -c "`+strings.ReplaceAll(ignoreTermScript, "$", `\$`)+`"`)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitUntil("name its child", func() bool { return strings.HasSuffix(p.Output(), "\n") }); err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(p.Output(), "child ")))
	if err != nil {
		t.Fatal(err)
	}
	p.Kill()
	p.Stop() // may follow Kill
	testkit.Eventually(t, "the child to be gone", func() bool {
		return errors.Is(syscall.Kill(child, 0), syscall.ESRCH)
	})
}

func TestWaitPortReportsTheOutputOfAnEndedProcess(t *testing.T) {
	p, err := Start(t, FindProgram(t, "sh", "dash"), "-c", "echo no such setting; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = p.WaitPort(Loopback(freePorts(t, 1)[0]))
	if err == nil || !strings.Contains(err.Error(), "no such setting") || !strings.Contains(err.Error(), "exit status 3") {
		t.Fatalf("WaitPort = %v", err)
	}
}

func TestServerThatLosesItsPortStartsOnAnother(t *testing.T) {
	var listener net.Listener
	tries := 0
	OnFreePorts(t, 2, func(ports []int) error {
		tries++
		if ports[0] == ports[1] {
			t.Errorf("the same port twice: %v", ports)
		}
		if tries < 3 {
			return ErrPortTaken
		}
		var err error
		listener, err = net.Listen("tcp", Loopback(ports[1]))
		return err
	})
	if tries != 3 || listener == nil {
		t.Fatalf("%d tries, listener %v", tries, listener)
	}
	_ = listener.Close()
}
