package mux

import (
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/upstream"
)

// babble is a backend that logs everybody in and then says what it was given,
// piece by piece: the pieces are cut at 0xff, and ~ in them is the tag it was told
// last. What it has left it says to the connections that follow.
type babble struct {
	mu     sync.Mutex
	pieces [][]byte // Guarded by mu.
}

func (b *babble) next() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.pieces) == 0 {
		return nil
	}
	piece := b.pieces[0]
	b.pieces = b.pieces[1:]
	return piece
}

// talk ends when b has nothing more to say, or nobody listens.
func (b *babble) talk(p *party) {
	defer p.close()
	buf := make([]byte, 4<<10)
	tag := []byte("~")
	for piece := b.next(); piece != nil; piece = b.next() {
		p.say(string(bytes.ReplaceAll(piece, []byte("~"), tag)))
		_ = p.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err := p.r.Read(buf)
		if n > 0 {
			last := bytes.TrimRight(buf[:n], "\r\n")
			last = last[bytes.LastIndexByte(last, '\n')+1:]
			first, _, _ := bytes.Cut(last, []byte(" "))
			tag = bytes.Clone(first)
		}
		if timeout, ok := err.(net.Error); err != nil && !(ok && timeout.Timeout()) {
			return
		}
	}
	p.said()
}

// fuzzed is one run of a session between a client and a backend that say anything.
type fuzzed struct {
	*stage
	talk    func(*party) // a connection of the backend's; closes it
	talking sync.WaitGroup
	stop    chan struct{}
	met     int // peers that talk, or did
}

// listen has every connection of the stub talk. It ends when stop is closed.
func (f *fuzzed) listen() {
	defer f.talking.Done()
	for {
		f.stub.mu.Lock()
		peers := f.stub.peers
		f.stub.mu.Unlock()
		if len(peers) > f.met {
			p := peers[f.met]
			f.talking.Go(func() { f.talk(p) })
			f.met++
			continue
		}
		select {
		case <-f.stop:
			return
		case <-time.After(100 * time.Microsecond):
		}
	}
}

// run plays it, and returns what the client has heard.
func (f *fuzzed) run(client []byte) []byte {
	who, err := identity.Canon(user, "")
	must(f.t, err)
	account, err := f.hub.Login(context.Background(), Home{Backend: "stub"}, upstream.Request{User: who, Password: identity.NewSecret("right")}, pool.Vouched)
	must(f.t, err)
	f.talking.Add(1)
	go f.listen()
	near, far := f.connect()
	ended := make(chan Result, 2)
	f.hub.Start(Client{Conn: near, Who: &audit.Client{Session: "s-1"}, Mode: f.setup.mode, Caps: account.Caps()}, "stub", account,
		func(r Result) { ended <- r })
	_, _ = far.Write(client)
	_ = far.(*net.TCPConn).CloseWrite()
	_ = far.SetReadDeadline(time.Now().Add(patience))
	heard, err := io.ReadAll(far)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		f.t.Fatalf("the session does not end\n%s", stacks())
	}
	_ = far.Close()
	if r := <-ended; r.Reason == audit.InternalMistake {
		f.t.Errorf("ended for %v (%v)", r.Reason, r.Err)
	}
	if len(ended) > 0 {
		f.t.Error("ended twice")
	}
	close(f.stop)
	f.talking.Wait()
	return heard
}

// answersOnly wants every tag that the client was told to be one of its own.
func answersOnly(t *testing.T, client, heard []byte) {
	own := map[string]bool{"*": true, "+": true}
	for line := range bytes.SplitSeq(client, []byte("\n")) {
		tag, _, _ := bytes.Cut(bytes.TrimRight(line, "\r"), []byte(" "))
		own[string(tag)] = true
	}
	r := imap.NewReader(bytes.NewReader(heard), imap.Responses, 64<<10)
	for {
		fresh := r.Between()
		seg, err := r.Next()
		if err != nil {
			return
		}
		tag, _, _ := bytes.Cut(bytes.TrimRight(seg.Bytes, "\r\n"), []byte(" "))
		if fresh && !own[string(tag)] {
			t.Errorf("the client is told %.80q, which answers nothing that it said", seg.Bytes)
		}
	}
}

// seed is what the client and the backend say in a dialogue, each on its own.
func (d dialogue) seed() (client, backend string) {
	for _, line := range d.lines {
		verb, rest, _ := strings.Cut(line, " ")
		text, err := strconv.Unquote(rest)
		if err != nil {
			text = rest + "\r\n"
		}
		text = ourTag.ReplaceAllString(text, "~")
		switch {
		case verb == "C", verb == "C!":
			client += text
		case verb == "OPEN":
			f := strings.Fields(rest)
			client += "s SELECT INBOX\r\n"
			backend += strings.Join(mailboxLines(f[0], f[1], f[2]), "\r\n") + "\r\n~ OK [READ-WRITE] done\r\n"
		case verb == "REOPEN":
			f := strings.Fields(rest)
			backend += "\xff" + strings.Join(mailboxLines(f[1], f[2], f[3]), "\r\n") + "\r\n~ OK [READ-WRITE] done\r\n"
		case verb[0] == 'U':
			backend += "\xff"
		case verb[0] == 'B' && !strings.Contains(verb, "-"):
			backend += text
		}
	}
	return client, backend
}

// FuzzSession lets a client and a backend say anything to each other: nothing
// breaks down, nothing is left, and the client hears no answer to what it has
// not said.
func FuzzSession(f *testing.F) {
	for i, d := range readDialogues(f) {
		client, backend := d.seed()
		f.Add([]byte(client), []byte(backend), byte(i))
	}
	f.Fuzz(func(t *testing.T, client, backend []byte, how byte) {
		if len(client) > 8<<10 || len(backend) > 8<<10 {
			return
		}
		leavesNothing(t)
		settings := Settings{HoldMax: 20 * time.Millisecond, Learn: Lazy, Consistent: how&2 != 0, AlwaysDetach: how&8 != 0}
		mode := Resume
		if how&1 != 0 {
			mode = Reuse
		}
		if how&4 != 0 {
			settings.Learn = Eager
		}
		y := newStage(t, setup{mode: mode, settings: settings, write: time.Second}, nil)
		b := &babble{pieces: bytes.Split(backend, []byte{0xff})}
		z := &fuzzed{stage: y, talk: b.talk, stop: make(chan struct{})}
		heard := z.run(client)
		pinned := y.handedOn()
		y.close()
		y.stub.shut()
		for _, p := range y.stub.peers[z.met:] { // that came too late
			p.close()
		}
		if !pinned { // spliced, it hears anything
			answersOnly(t, client, heard)
		}
	})
}
