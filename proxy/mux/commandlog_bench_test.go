package mux

import (
	"bufio"
	"net"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/audit"
)

// noopClient is a session whose client says NOOP over and over, with both ends of it
// in this process.
type noopClient struct {
	*dialogueRun
	reader *bufio.Reader
}

func newNoopClient(b *testing.B, which audit.CommandFilter) *noopClient {
	y := newHarness(b, setup{mode: Reuse, auditCommands: which, parkAfter: time.Minute}, nil)
	p := &dialogueRun{splitMode: "whole", tags: map[string]string{}, harness: y, testClient: y.logIn()}
	must(b, p.selectInbox(1))
	peer, err := y.stub.peer(1)
	must(b, err)
	echoed := make(chan struct{})
	go answerNoops(peer.conn, echoed)
	b.Cleanup(func() {
		p.scriptedConn.queueClose()
		y.awaitEnd(p.testClient)
		y.close(p.testClient)
		y.stub.close()
		<-echoed
	})
	return &noopClient{dialogueRun: p, reader: bufio.NewReader(p.scriptedConn.conn)}
}

// answerNoops answers "a NOOP". It ends with the connection.
func answerNoops(conn net.Conn, done chan<- struct{}) {
	defer close(done)
	_ = conn.SetDeadline(time.Time{}) // whoever played it had one
	r := bufio.NewReader(conn)
	for {
		if _, err := r.ReadSlice('\n'); err != nil {
			return
		}
		if _, err := conn.Write([]byte("a OK NOOP completed.\r\n")); err != nil {
			return
		}
	}
}

// run says NOOP n times, each when the one before is answered, and says how much
// of both cores that took, and how long.
func (p *noopClient) run(b *testing.B, n int) (cpu, took time.Duration) {
	_ = p.scriptedConn.conn.SetDeadline(time.Now().Add(time.Minute))
	cpu, began := cpuTime(b), time.Now()
	for range n {
		if _, err := p.scriptedConn.conn.Write([]byte("a NOOP\r\n")); err != nil {
			b.Fatal(err)
		}
		if _, err := p.reader.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
	return cpuTime(b) - cpu, time.Since(began)
}

// cpuTime is the processor time of this process.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCommandAudit is NOOP with no command on record and with each, in
// turns, so that whatever else the machine does happens to both.
func BenchmarkCommandAudit(b *testing.B) {
	const round = 500
	modes := []audit.CommandFilter{audit.NoCommands, audit.AllCommands}
	var cpu, took [2]time.Duration
	var sessions [2]*noopClient
	for i, which := range modes {
		sessions[i] = newNoopClient(b, which)
		sessions[i].run(b, round)
	}
	for b.Loop() {
		for i, s := range sessions {
			c, d := s.run(b, round)
			cpu[i], took[i] = cpu[i]+c, took[i]+d
		}
	}
	for i, which := range modes {
		b.ReportMetric(float64(cpu[i])/float64(b.N*round), string(which)+"-cpu-ns/NOOP")
	}
	b.ReportMetric(float64(cpu[1])/float64(cpu[0]), "cpu-ratio")
	b.ReportMetric(float64(took[1])/float64(took[0]), "time-ratio")
}
