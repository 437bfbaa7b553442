package mux

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// strict is a backend that does what it is asked and holds every line to ending in
// CRLF, with no other CR or LF in it.
type strict struct {
	mu     sync.Mutex
	heard  []string // Guarded by mu. Commands of clients, whole, as they would wait for their literals.
	faults []string // Guarded by mu. Lines that are none.
}

var (
	announces   = regexp.MustCompile(`\{([0-9]+)(\+?)\}\r\n$`)
	quotes      = regexp.MustCompile(`^([^"]|"([^"\\]|\\.)*")*"([^"\\]|\\.)*$`) // a string that does not end
	waitsForYou = regexp.MustCompile(`\{[0-9]+\}\r?\n`)
	gatewaysOwn = regexp.MustCompile(`^[A-Z2-7]{13}[0-9a-z]+$`) // a tag
)

// talk ends with the connection.
func (b *strict) talk(p *party) {
	defer p.close()
	for {
		command, err := b.command(p)
		if err != nil {
			return
		}
		tag, rest, _ := strings.Cut(command, " ")
		name, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(rest)), " ")
		if !gatewaysOwn.MatchString(tag) {
			b.mu.Lock()
			b.heard = append(b.heard, command)
			b.mu.Unlock()
		}
		switch name {
		case "SELECT", "EXAMINE":
			p.say(strings.Join(mailboxLines("0", "1", "7"), "\r\n") + "\r\n")
		case "IDLE":
			p.say("+ go on\r\n")
			if _, err := b.line(p); err != nil {
				return
			}
		}
		p.say(tag + " OK done\r\n")
	}
}

// command reads one, and asks for the literals that wait.
func (b *strict) command(p *party) (string, error) {
	var whole strings.Builder
	for {
		line, err := b.line(p)
		if err != nil {
			return "", err
		}
		found := announces.FindStringSubmatch(line)
		if found == nil {
			whole.WriteString(line)
			return whole.String(), nil
		}
		if found[2] == "" {
			p.say("+ go on\r\n")
		}
		whole.WriteString(strings.TrimSuffix(line, found[0]) + "{" + found[1] + "}\r\n")
		size, err := strconv.Atoi(found[1])
		if err != nil {
			return "", err
		}
		for range size {
			c, err := p.r.ReadByte()
			if err != nil {
				return "", err
			}
			whole.WriteByte(c)
		}
	}
}

func (b *strict) line(p *party) (string, error) {
	line, err := p.line()
	if err != nil {
		return "", err
	}
	if text, ok := strings.CutSuffix(line, "\r\n"); !ok || strings.Contains(text, "\r") {
		b.mu.Lock()
		b.faults = append(b.faults, line)
		b.mu.Unlock()
	}
	return line, nil
}

// byEveryLF are the commands in a client's words, of which every LF outside literals
// ends a line, as strict hears them.
func byEveryLF(client []byte) (all []string) {
	whole := ""
	for {
		line, rest, ok := bytes.Cut(client, []byte("\n"))
		if !ok {
			return all
		}
		text := string(bytes.TrimSuffix(line, []byte("\r"))) + "\r\n"
		client = rest
		found := announces.FindStringSubmatch(text)
		if found == nil || quotes.MatchString(text) {
			all = append(all, whole+text)
			whole = ""
			continue
		}
		size, err := strconv.Atoi(found[1])
		if err != nil || size > len(client) {
			return all
		}
		whole += strings.TrimSuffix(text, found[0]) + "{" + found[1] + "}\r\n" + string(client[:size])
		client = client[size:]
	}
}

// isOf says whether a command is one of all, or the beginning of one that the gateway
// has broken off, and takes it out.
func isOf(all []string, command string) ([]string, bool) {
	begun, broken := strings.CutSuffix(command, " (\r\n")
	i := slices.IndexFunc(all, func(c string) bool { return c == command || broken && strings.HasPrefix(c, begun) })
	if i < 0 {
		return all, false
	}
	return slices.Delete(all, i, i+1), true
}

// FuzzLineEnds lets a client say anything, cut anywhere: its backend hears lines that
// end in CRLF alone, and no command that is not the client's where every LF ends a line.
func FuzzLineEnds(f *testing.F) {
	for i, d := range readDialogues(f) {
		client, _ := d.seed()
		if i%4 == 0 { // which is enough, and each takes its time
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
		leavesNothing(t)
		mode := Resume
		if how&1 != 0 {
			mode = Reuse
		}
		y := newStage(t, setup{mode: mode, settings: Settings{HoldMax: 20 * time.Millisecond}, write: time.Second}, nil)
		b := &strict{}
		z := &fuzzed{stage: y, talk: b.talk, stop: make(chan struct{})}
		z.talking.Add(1)
		go z.listen()
		a := y.join()
		a.sayInPieces(client, sizes)
		a.halfClose()
		_, _ = a.party.rest() // however it ends
		a.party.hangUp()
		y.leave(a)
		pinned := y.handedOn()
		y.close(a)
		close(z.stop)
		z.talking.Wait()
		y.stub.shut()
		for _, p := range y.stub.peers[z.met:] { // that came too late
			p.close()
		}
		if pinned { // spliced, it says anything
			return
		}
		if err := b.judge(client); err != nil {
			t.Error(err)
		}
	})
}

// judge compares what was heard with what the client said.
func (b *strict) judge(client []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.faults) > 0 {
		return fmt.Errorf("the backend hears %q", b.faults)
	}
	if waitsForYou.Match(client) { // it did not wait: what was a literal to it may be a command
		return nil
	}
	var wrong error
	left := byEveryLF(client)
	for _, command := range b.heard {
		var ok bool
		if left, ok = isOf(left, command); !ok {
			wrong = errors.Join(wrong, fmt.Errorf("the backend hears %q", command))
		}
	}
	return wrong
}

// sayInPieces gives the gateway time to read each of them by itself; not for long,
// because it may be waiting for an answer.
func (a *actor) sayInPieces(text, sizes []byte) {
	for i, said := 0, int64(0); len(text) > 0; i++ {
		n := min(int(sizes[i%len(sizes)])%64+1, len(text))
		if sizes[0] == 0 {
			n = len(text)
		}
		a.party.say(string(text[:n]))
		said += int64(n)
		for range 2000 {
			if in, _ := a.session.client.Counts(); in >= said {
				break
			}
			runtime.Gosched()
		}
		text = text[n:]
	}
}
