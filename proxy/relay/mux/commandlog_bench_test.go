package mux

import (
	"bufio"
	"net"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// noopClient is a session whose client sends NOOP repeatedly, with both ends in this
// process.
type noopClient struct {
	*dialogueRun
	reader *bufio.Reader
}

func newNoopClient(b *testing.B, which audit.CommandFilter) *noopClient {
	h := newHarness(b, setup{mode: event.ModeReuse, auditCommands: which, parkAfter: time.Minute}, nil)
	p := &dialogueRun{splitMode: "whole", tags: map[string]string{}, harness: h, testClient: h.logIn()}
	testkit.NoError(b, p.selectInbox(1))
	peer, err := h.stub.peer(1)
	testkit.NoError(b, err)
	echoed := make(chan struct{})
	go answerNoops(peer.conn, echoed)
	b.Cleanup(func() {
		p.scriptedConn.queueClose()
		h.awaitEnd(p.testClient)
		h.close(p.testClient)
		h.stub.close()
		<-echoed
	})
	return &noopClient{dialogueRun: p, reader: bufio.NewReader(p.scriptedConn.conn)}
}

// answerNoops answers "a NOOP". It ends with the connection.
func answerNoops(conn net.Conn, done chan<- struct{}) {
	defer close(done)
	_ = conn.SetDeadline(time.Time{}) // the script has set one
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

// run sends NOOP n times, each after the answer to the one before. It returns the
// processor time and the elapsed time.
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

// cpuTime returns the processor time of this process.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	testkit.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCommandAudit compares NOOP with no recorded commands and with all of them, in
// alternation, so that other load on the machine affects both.
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
