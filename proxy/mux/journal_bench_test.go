package mux

import (
	"bufio"
	"net"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/audit"
)

// pinging is a session whose client says NOOP over and over, with both ends of it
// in this process.
type pinging struct {
	*performance
	answered *bufio.Reader
}

func newPinging(b *testing.B, which audit.Commands) *pinging {
	y := newStage(b, setup{mode: Reuse, commands: which, quiet: time.Minute}, nil)
	p := &performance{way: "whole", tags: map[string]string{}, stage: y, actor: y.join()}
	must(b, p.selects(1))
	peer, err := y.stub.peer(1)
	must(b, err)
	echoed := make(chan struct{})
	go echo(peer.conn, echoed)
	b.Cleanup(func() {
		p.party.hangUp()
		y.leave(p.actor)
		y.close(p.actor)
		y.stub.close()
		<-echoed
	})
	return &pinging{performance: p, answered: bufio.NewReader(p.party.conn)}
}

// echo answers "a NOOP". It ends with the connection.
func echo(conn net.Conn, done chan<- struct{}) {
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

// ping says NOOP n times, each when the one before is answered, and says how much
// of both cores that took, and how long.
func (p *pinging) ping(b *testing.B, n int) (cpu, took time.Duration) {
	_ = p.party.conn.SetDeadline(time.Now().Add(time.Minute))
	cpu, began := spent(b), time.Now()
	for range n {
		if _, err := p.party.conn.Write([]byte("a NOOP\r\n")); err != nil {
			b.Fatal(err)
		}
		if _, err := p.answered.ReadSlice('\n'); err != nil {
			b.Fatal(err)
		}
	}
	return spent(b) - cpu, time.Since(began)
}

// spent is the processor time of this process.
func spent(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCommandsOnRecord is NOOP with no command on record and with each, in
// turns, so that whatever else the machine does happens to both.
func BenchmarkCommandsOnRecord(b *testing.B) {
	const turn = 500
	modes := []audit.Commands{audit.NoCommands, audit.AllCommands}
	var cpu, took [2]time.Duration
	var sessions [2]*pinging
	for i, which := range modes {
		sessions[i] = newPinging(b, which)
		sessions[i].ping(b, turn)
	}
	for b.Loop() {
		for i, s := range sessions {
			c, d := s.ping(b, turn)
			cpu[i], took[i] = cpu[i]+c, took[i]+d
		}
	}
	for i, which := range modes {
		b.ReportMetric(float64(cpu[i])/float64(b.N*turn), string(which)+"-cpu-ns/NOOP")
	}
	b.ReportMetric(float64(cpu[1])/float64(cpu[0]), "cpu-ratio")
	b.ReportMetric(float64(took[1])/float64(took[0]), "time-ratio")
}
