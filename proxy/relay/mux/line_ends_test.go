package mux

import (
	"bytes"
	"errors"
	"fmt"
	"imapgate/internal/event"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// strictBackend is a backend that executes commands and requires every line to end with
// CRLF and to contain no other CR or LF.
type strictBackend struct {
	mu       sync.Mutex
	commands []string // Guarded by mu. Complete commands of clients, with their literals written as synchronizing.
	badLines []string // Guarded by mu. Lines with wrong ends.
}

var (
	literalSuffix        = regexp.MustCompile(`\{([0-9]+)(\+?)\}\r\n$`)
	openQuote            = regexp.MustCompile(`^([^"]|"([^"\\]|\\.)*")*"([^"\\]|\\.)*$`) // an unterminated string
	synchronizingLiteral = regexp.MustCompile(`\{[0-9]+\}\r?\n`)
	gatewayTag           = regexp.MustCompile(`^[A-Z2-7]{13}[0-9a-z]+$`) // a tag
)

// serve ends with the connection.
func (b *strictBackend) serve(p *scriptedConn) {
	defer p.close()
	for {
		command, err := b.readCommand(p)
		if err != nil {
			return
		}
		tag, rest, _ := strings.Cut(command, " ")
		name, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(rest)), " ")
		if !gatewayTag.MatchString(tag) {
			b.mu.Lock()
			b.commands = append(b.commands, command)
			b.mu.Unlock()
		}
		switch name {
		case "SELECT", "EXAMINE":
			p.send(strings.Join(selectLines("0", "1", "7"), "\r\n") + "\r\n")
		case "IDLE":
			p.send("+ go on\r\n")
			if _, err := b.readLine(p); err != nil {
				return
			}
		}
		p.send(tag + " OK done\r\n")
	}
}

// readCommand reads a command, and requests its synchronizing literals.
func (b *strictBackend) readCommand(p *scriptedConn) (string, error) {
	var command strings.Builder
	for {
		line, err := b.readLine(p)
		if err != nil {
			return "", err
		}
		found := literalSuffix.FindStringSubmatch(line)
		if found == nil {
			command.WriteString(line)
			return command.String(), nil
		}
		if found[2] == "" {
			p.send("+ go on\r\n")
		}
		command.WriteString(strings.TrimSuffix(line, found[0]) + "{" + found[1] + "}\r\n")
		size, err := strconv.Atoi(found[1])
		if err != nil {
			return "", err
		}
		for range size {
			c, err := p.r.ReadByte()
			if err != nil {
				return "", err
			}
			command.WriteByte(c)
		}
	}
}

func (b *strictBackend) readLine(p *scriptedConn) (string, error) {
	line, err := p.readLine()
	if err != nil {
		return "", err
	}
	if text, ok := strings.CutSuffix(line, "\r\n"); !ok || strings.Contains(text, "\r") {
		b.mu.Lock()
		b.badLines = append(b.badLines, line)
		b.mu.Unlock()
	}
	return line, nil
}

// splitAtEveryLF returns the commands in a client's input, as strictBackend receives
// them, if every LF outside literals ends a line.
func splitAtEveryLF(client []byte) (all []string) {
	command := ""
	for {
		line, rest, ok := bytes.Cut(client, []byte("\n"))
		if !ok {
			return all
		}
		text := string(bytes.TrimSuffix(line, []byte("\r"))) + "\r\n"
		client = rest
		found := literalSuffix.FindStringSubmatch(text)
		if found == nil || openQuote.MatchString(text) {
			all = append(all, command+text)
			command = ""
			continue
		}
		size, err := strconv.Atoi(found[1])
		if err != nil || size > len(client) {
			return all
		}
		command += strings.TrimSuffix(text, found[0]) + "{" + found[1] + "}\r\n" + string(client[:size])
		client = client[size:]
	}
}

// takeCommand removes command from all. The command may also be the beginning of one that
// the gateway has broken off.
func takeCommand(all []string, command string) ([]string, bool) {
	begun, broken := strings.CutSuffix(command, " (\r\n")
	i := slices.IndexFunc(all, func(c string) bool { return c == command || broken && strings.HasPrefix(c, begun) })
	if i < 0 {
		return all, false
	}
	return slices.Delete(all, i, i+1), true
}

// FuzzLineEnds lets a client send anything, in any pieces. The backend receives only
// lines that end with CRLF, and only commands of the client, if every LF ends a line.
func FuzzLineEnds(f *testing.F) {
	for i, d := range readDialogues(f) {
		client, _ := d.seed()
		if i%4 == 0 { // enough, because each takes some time
			f.Add([]byte(strings.ReplaceAll(client, "\r\n", "\n")), []byte{9, byte(i)}, byte(i/4))
		}
	}
	for _, s := range []string{
		"a LIST \"\" *\nb DELETE x\nc NOOP\r\n", "a LIST \"\" \"x\nb DELETE x\"\r\n", "a STATUS \"x\n", "a LIST \"\" \"x\rb DELETE x\"\n",
		"a CREATE {3+}\nb\n\n\nc DELETE x\n", "a CREATE {3+}\r\nb\n\n\nc DELETE x\n", "a APPEND x {12+}\nb DELETE x\r\n\nc NOOP\n",
		"a APPEND x {3+}\r\nabc\nb DELETE x\n", "a APPEND x {3+}\r\nabc \rx\r\nb DELETE x\n", "a IDLE\nDONE\nb IDLE\nDONE \rx\n",
		"a SELECT INBOX\nb FETCH 1:* FLAGS\nc STORE 1 FLAGS {2+}\nx\n\nd LOGOUT\n",
	} {
		for cut := range byte(8) {
			f.Add([]byte(s), []byte{3 * cut, cut}, cut)
		}
	}
	f.Fuzz(func(t *testing.T, client, sizes []byte, how byte) {
		if len(client) > 2<<10 || len(sizes) == 0 || len(sizes) > 64 {
			return
		}
		checkGoroutineLeaks(t)
		mode := event.ModeResume
		if how&1 != 0 {
			mode = event.ModeReuse
		}
		h := newHarness(t, setup{mode: mode, settings: Settings{CommandHoldTimeout: 20 * time.Millisecond}, stallTimeout: time.Second}, nil)
		b := &strictBackend{}
		run := &fuzzRun{harness: h, serve: b.serve, stop: make(chan struct{})}
		run.serving.Add(1)
		go run.serveAll()
		a := h.logIn()
		a.sendInPieces(client, sizes)
		a.queueCloseWrite()
		_, _ = a.scriptedConn.readAll() // any end
		a.scriptedConn.queueClose()
		h.awaitEnd(a)
		pinned := h.wasHandedOver()
		h.close(a)
		close(run.stop)
		run.serving.Wait()
		h.stub.closeListener()
		for _, p := range h.stub.peers[run.served:] { // arrived too late to be served
			p.close()
		}
		if pinned { // spliced, it receives anything
			return
		}
		if err := b.check(client); err != nil {
			t.Error(err)
		}
	})
}

// check compares the received commands with the client's input.
func (b *strictBackend) check(client []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.badLines) > 0 {
		return fmt.Errorf("the backend received %q", b.badLines)
	}
	if synchronizingLiteral.Match(client) { // the client did not wait: its literal may have become commands
		return nil
	}
	var wrong error
	left := splitAtEveryLF(client)
	for _, command := range b.commands {
		var ok bool
		if left, ok = takeCommand(left, command); !ok {
			wrong = errors.Join(wrong, fmt.Errorf("the backend received %q", command))
		}
	}
	return wrong
}

// sendInPieces gives the gateway time to read each piece separately. It does not wait
// long, because the gateway may be waiting for an answer.
func (c *testClient) sendInPieces(text, sizes []byte) {
	for i, sent := 0, int64(0); len(text) > 0; i++ {
		n := min(int(sizes[i%len(sizes)])%64+1, len(text))
		if sizes[0] == 0 {
			n = len(text)
		}
		c.scriptedConn.send(string(text[:n]))
		sent += int64(n)
		for range 2000 {
			if in, _ := c.session.client.ByteCounts(); in >= sent {
				break
			}
			runtime.Gosched()
		}
		text = text[n:]
	}
}
