package tests

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// Many servers exit or spin when accept finds no free descriptor (EMFILE). Connections that
// wait in the kernel's queue must be served once there is one.
func TestAcceptSurvivesDescriptorExhaustion(t *testing.T) {
	ca := testbed.NewCA(t)
	b := startProcess(t, ca, fmt.Sprintf(`backends:
  east: {address: %q, tls: none}
routing: {source: static, static: {default: east}}`, startStub(t, nil).Addr()))
	pid := b.process.PID()
	first := mustDial(t, b.endpoint("implicit"), "")
	mustExec(t, first, "LOGIN alice "+password)

	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	none := unix.Rlimit{Cur: uint64(len(open)), Max: limit.Max} // lower numbers are in use, or will be soon
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &none, nil); err != nil {
		t.Fatal(err)
	}
	exhausted := func() bool { return strings.Contains(b.process.Output(), "too many open files") }
	var waiting []*RawClient
	for !exhausted() && len(waiting) < 64 { // first use up the free descriptors
		c, err := Connect(b.addresses["starttls"], nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waiting = append(waiting, c)
	}
	testkit.Eventually(t, "accept to fail", exhausted)
	mustExec(t, first, "NOOP") // existing sessions stay
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	for i, c := range waiting {
		if got, err := c.Read(); err != nil || !strings.HasPrefix(got.Text, "* OK ") {
			t.Fatalf("connection %d: %q, %v", i, got.Text, err)
		}
	}
	mustExec(t, first, "NOOP")
}
