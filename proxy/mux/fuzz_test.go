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

// chunkBackend is a backend that logs everybody in and then says what it was given,
// piece by piece: the pieces are cut at 0xff, and ~ in them is the tag it was told
// last. What it has left it says to the connections that follow.
type chunkBackend struct {
	mu     sync.Mutex
	chunks [][]byte // Guarded by mu.
}

func (b *chunkBackend) nextChunk() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.chunks) == 0 {
		return nil
	}
	piece := b.chunks[0]
	b.chunks = b.chunks[1:]
	return piece
}

// serve ends when b has nothing more to say, or nobody listens.
func (b *chunkBackend) serve(p *scriptedConn) {
	defer p.close()
	buf := make([]byte, 4<<10)
	tag := []byte("~")
	for piece := b.nextChunk(); piece != nil; piece = b.nextChunk() {
		p.send(string(bytes.ReplaceAll(piece, []byte("~"), tag)))
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
	p.awaitWritten()
}

// fuzzRun is one run of a session between a client and a backend that say anything.
type fuzzRun struct {
	*harness
	serve   func(*scriptedConn) // a connection of the backend's; closes it
	serving sync.WaitGroup
	stop    chan struct{}
	served  int // peers that talk, or did
}

// serveAll has every connection of the stub talk. It ends when stop is closed.
func (f *fuzzRun) serveAll() {
	defer f.serving.Done()
	for {
		f.stub.mu.Lock()
		peers := f.stub.peers
		f.stub.mu.Unlock()
		if len(peers) > f.served {
			p := peers[f.served]
			f.serving.Go(func() { f.serve(p) })
			f.served++
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
func (f *fuzzRun) run(client []byte) []byte {
	name, err := identity.Canonicalize(user, "")
	must(f.t, err)
	account, err := f.hub.Login(context.Background(), Location{Backend: "stub"}, upstream.Request{User: name, Password: identity.NewSecret("right")}, pool.VerifiedHere)
	must(f.t, err)
	f.serving.Add(1)
	go f.serveAll()
	gatewayEnd, clientEnd := f.socketPair()
	ended := make(chan Result, 2)
	f.hub.Start(Client{Conn: gatewayEnd, AuditClient: &audit.Client{Session: "s-1"}, Mode: f.setup.mode, Caps: account.Caps()}, "stub", account,
		func(r Result) { ended <- r })
	_, _ = clientEnd.Write(client)
	_ = clientEnd.(*net.TCPConn).CloseWrite()
	_ = clientEnd.SetReadDeadline(time.Now().Add(testTimeout))
	received, err := io.ReadAll(clientEnd)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		f.t.Fatalf("the session does not end\n%s", stacks())
	}
	_ = clientEnd.Close()
	if r := <-ended; r.Reason == audit.InternalMistake {
		f.t.Errorf("ended for %v (%v)", r.Reason, r.Err)
	}
	if len(ended) > 0 {
		f.t.Error("ended twice")
	}
	close(f.stop)
	f.serving.Wait()
	return received
}

// checkTags wants every tag that the client was told to be one of its own.
func checkTags(t *testing.T, client, received []byte) {
	own := map[string]bool{"*": true, "+": true}
	for line := range bytes.SplitSeq(client, []byte("\n")) {
		tag, _, _ := bytes.Cut(bytes.TrimRight(line, "\r"), []byte(" "))
		own[string(tag)] = true
	}
	r := imap.NewReader(bytes.NewReader(received), imap.Responses, 64<<10)
	for {
		isFirst := r.AtBoundary()
		seg, err := r.Next()
		if err != nil {
			return
		}
		tag, _, _ := bytes.Cut(bytes.TrimRight(seg.Bytes, "\r\n"), []byte(" "))
		if isFirst && !own[string(tag)] {
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
		text = tagPattern.ReplaceAllString(text, "~")
		switch {
		case verb == "C", verb == "C!":
			client += text
		case verb == "OPEN":
			f := strings.Fields(rest)
			client += "s SELECT INBOX\r\n"
			backend += strings.Join(selectLines(f[0], f[1], f[2]), "\r\n") + "\r\n~ OK [READ-WRITE] done\r\n"
		case verb == "REOPEN":
			f := strings.Fields(rest)
			backend += "\xff" + strings.Join(selectLines(f[1], f[2], f[3]), "\r\n") + "\r\n~ OK [READ-WRITE] done\r\n"
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
		checkGoroutineLeaks(t)
		settings := Settings{CommandHoldTimeout: 20 * time.Millisecond, UIDPrefetch: PrefetchLazy, ReadAfterWrite: how&2 != 0, AlwaysDetach: how&8 != 0}
		mode := Resume
		if how&1 != 0 {
			mode = Reuse
		}
		if how&4 != 0 {
			settings.UIDPrefetch = PrefetchEager
		}
		h := newHarness(t, setup{mode: mode, settings: settings, stallTimeout: time.Second}, nil)
		b := &chunkBackend{chunks: bytes.Split(backend, []byte{0xff})}
		run := &fuzzRun{harness: h, serve: b.serve, stop: make(chan struct{})}
		received := run.run(client)
		pinned := h.wasHandedOver()
		h.close()
		h.stub.closeListener()
		for _, p := range h.stub.peers[run.served:] { // that came too late
			p.close()
		}
		if !pinned { // spliced, it hears anything
			checkTags(t, client, received)
		}
	})
}
