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
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/pool"
	"imapgate/proxy/upstream"
)

// chunkBackend is a backend that accepts all logins and then sends its data in chunks,
// split at 0xff. ~ in a chunk stands for the last tag it received. Later connections send
// the remaining chunks.
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

// serve ends when b has no chunk left or the connection ends.
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

// fuzzRun is a session between a client and a backend that send arbitrary data.
type fuzzRun struct {
	*harness
	serve   func(*scriptedConn) // serves a backend's connection and closes it
	serving sync.WaitGroup
	stop    chan struct{}
	served  int // number of peers served
}

// serveAll serves every connection of the stub. It ends when stop is closed.
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

// run runs the session, and returns what the client received.
func (f *fuzzRun) run(client []byte) []byte {
	name, err := identity.Canonicalize(user, "")
	testkit.NoError(f.t, err)
	account, err := f.hub.Login(context.Background(), Location{Backend: "stub"}, upstream.Request{User: name, Password: identity.NewSecret("right")}, pool.VerifiedHere)
	testkit.NoError(f.t, err)
	f.serving.Add(1)
	go f.serveAll()
	gatewayEnd, clientEnd := f.socketPair()
	ended := make(chan relay.Result, 2)
	live := f.deps.Sessions.Add(relay.Info{Backend: "stub", Mode: f.setup.mode}, relay.OwnerFunc(func(r relay.Result) { ended <- r }))
	f.hub.Start(live, Client{Conn: gatewayEnd, AuditClient: &audit.Client{Session: "s-1"}, Caps: account.Caps()}, account)
	_, _ = clientEnd.Write(client)
	_ = clientEnd.(*net.TCPConn).CloseWrite()
	_ = clientEnd.SetReadDeadline(time.Now().Add(testTimeout))
	received, err := io.ReadAll(clientEnd)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		f.t.Fatalf("the session does not end\n%s", stacks())
	}
	_ = clientEnd.Close()
	if r := <-ended; r.Reason == event.InternalError {
		f.t.Errorf("ended for %v (%v)", r.Reason, r.Err)
	}
	if len(ended) > 0 {
		f.t.Error("ended twice")
	}
	close(f.stop)
	f.serving.Wait()
	return received
}

// checkTags requires every tag that the client received to be one of its own.
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
			t.Errorf("the client receives %.80q, which answers none of its commands", seg.Bytes)
		}
	}
}

// seed returns what the client and the backend send in a dialogue.
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

// FuzzSession lets a client and a backend send anything. The gateway must not panic or
// leak, and the client must receive only answers to its own commands.
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
		mode := event.ModeResume
		if how&1 != 0 {
			mode = event.ModeReuse
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
		for _, p := range h.stub.peers[run.served:] { // arrived too late to be served
			p.close()
		}
		if !pinned { // spliced, it receives anything
			checkTags(t, client, received)
		}
	})
}
