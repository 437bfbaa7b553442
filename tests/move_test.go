package tests

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// The recipe of docs/OPERATIONS.md, "Moving a user", is read from there and run
// command by command, while clients of the user write all the time.

// recipe is the blocks of commands of the section, by the heading above them.
type recipe map[string][]block

// block is commands, and where they are to be run: the comment that is its first
// line.
type block struct{ where, commands string }

// readRecipe finds the blocks: lines that are indented by four spaces.
func readRecipe(t *testing.T) recipe {
	t.Helper()
	text, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(text), "\n## Moving a user\n")
	if !ok {
		t.Fatal("docs/OPERATIONS.md has no section on moving a user")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	found, heading, within := recipe{}, "", false
	for line := range strings.Lines(section) {
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case strings.HasPrefix(line, "### "):
			heading = strings.TrimSpace(line[4:])
		case indented && within:
			last := &found[heading][len(found[heading])-1]
			last.commands += code
		case indented:
			found[heading] = append(found[heading], block{strings.TrimSpace(strings.TrimPrefix(code, "# ")), ""})
		}
		within = indented
	}
	return found
}

// in gives the blocks below a heading with other words in the place of those in
// the text.
func (r recipe) in(t *testing.T, heading string, words *strings.Replacer) (all []block) {
	t.Helper()
	if len(r[heading]) == 0 {
		t.Fatalf("docs/OPERATIONS.md has no commands below %q", heading)
	}
	for _, b := range r[heading] {
		all = append(all, block{words.Replace(b.where), words.Replace(b.commands)})
	}
	return all
}

// host is a mail server of the recipe: a Dovecot, and what the recipe calls its
// addresses.
type host struct {
	*testbed.Dovecot
	name          string // east or west
	doveadm, lmtp string // host:port
	bin           string // has a doveadm of this host
}

// province is two mail servers, two gateways, Redis and an MTA.
type province struct {
	t         *testing.T
	docs      recipe
	hosts     map[string]*host
	gateways  []*binary
	bins      []string // for each gateway: has an imapgate that asks it
	transport string   // the MTA's table; the last line of a user holds
	mta       string   // has postmap and postqueue
}

func startProvince(t *testing.T) *province {
	t.Helper()
	p := &province{t: t, docs: readRecipe(t), hosts: map[string]*host{}, mta: t.TempDir()}
	ca := testbed.NewCA(t)
	// An address for each: nobody else asks the kernel for a port there.
	for name, ip := range map[string]string{"east": "127.0.83.1", "west": "127.0.83.2"} {
		p.hosts[name] = &host{name: name, doveadm: freeAt(t, ip), lmtp: freeAt(t, ip), bin: t.TempDir()}
	}
	for _, h := range p.hosts {
		h.Dovecot = testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca, Settings: lmtpAt(h.lmtp), Settings24: lmtp24At(h.lmtp)})
		p.prepare(h)
	}
	redis := testbed.StartRedis(t)
	sections := fmt.Sprintf("backends:\n  east: {address: %q, tls: none, mux: {credential_cache: true}}\n"+
		"  west: {address: %q, tls: none, mux: {credential_cache: true}}\nredis: {addresses: [%q]}",
		p.hosts["east"].Plain, p.hosts["west"].Plain, redis.Address)
	for range 2 {
		b := startBinary(t, ca, sections)
		bin := t.TempDir()
		writeScript(t, bin, "imapgate", fmt.Sprintf(`exec %s "$@" --config %s`, b.path, b.operatorFile(t)))
		p.gateways, p.bins = append(p.gateways, b), append(p.bins, bin)
	}
	p.transport = filepath.Join(p.mta, "transport")
	writeScript(t, p.mta, "postmap", "cat >>"+p.transport)
	writeScript(t, p.mta, "postqueue", "exit 0") // the MTA of the test tries again by itself
	return p
}

// freeAt asks the kernel for a port at an address of this machine.
func freeAt(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nothing was written
	return l.Addr().String()
}

// lmtpAt is the settings of a Dovecot that takes deliveries at an address.
func lmtpAt(address string) string {
	return fmt.Sprintf("protocols = imap lmtp\nservice lmtp {\n  inet_listener lmtp {\n%s  }\n}\n", listenAt(address))
}

// lmtp24At is lmtpAt in the terms of Dovecot 2.4.
func lmtp24At(address string) string {
	return fmt.Sprintf("protocols {\n  lmtp = yes\n}\nservice lmtp {\n  inet_listener lmtp {\n%s  }\n}\n",
		strings.Replace(listenAt(address), "address =", "listen =", 1))
}

// listenAt is where a listener of Dovecot's listens.
func listenAt(address string) string {
	ip, port, _ := strings.Cut(address, ":")
	return fmt.Sprintf("    address = %s\n    port = %s\n", ip, port)
}

// writeScript makes a program of shell commands.
func writeScript(t *testing.T, dir, name, commands string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+commands+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// prepare sets a Dovecot up as "Before the first move" says.
func (p *province) prepare(h *host) {
	p.t.Helper()
	words := p.words(h.name, "nobody@example.org", "")
	blocks := p.docs.in(p.t, "Before the first move", words)
	file := filepath.Join(h.Dir, "dovecot.conf")
	conf, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	i := slices.IndexFunc(blocks, func(b block) bool { return b.where == "dovecot.conf of Dovecot "+series(p.t) })
	if i < 0 {
		p.t.Fatalf("there are no settings for Dovecot %s in %v", series(p.t), blocks)
	}
	listen, userdb := listenAt(h.doveadm), "\nuserdb {"
	if series(p.t) != "2.3" {
		listen, userdb = strings.Replace(listen, "address =", "listen =", 1), "\nuserdb static {"
	}
	settings := strings.Replace(blocks[i].commands, "    port = 12345\n", listen, 1)
	settings = strings.ReplaceAll(settings, "$MOVING", h.Inside(filepath.Join(h.Dir, "moving")))
	conf = bytes.Replace(conf, []byte(userdb), []byte("\n"+settings+userdb), 1)
	if err := os.WriteFile(file, conf, 0o644); err != nil {
		p.t.Fatal(err)
	}
	writeScript(p.t, h.bin, "doveadm", fmt.Sprintf(`exec %s "$@"`, h.Doveadm()))
	h.Restart() // listeners of its own are new
	for _, b := range slices.DeleteFunc(blocks, func(b block) bool { return strings.HasPrefix(b.where, "dovecot.conf") }) {
		if err := p.shell(h.bin, h.Dir, b.commands); err != nil {
			p.t.Fatal(err)
		}
	}
}

// words puts the addresses of this test in the place of those in the docs, for a
// move that begins at a host. "" as the working folder is none.
func (p *province) words(from, user, dir string) *strings.Replacer {
	other := map[string]string{"east": "west", "west": "east"}
	source, target := p.hosts[from], p.hosts[other[from]]
	if target == nil {
		target = source
	}
	return strings.NewReplacer(
		"/etc/dovecot/moving", "$MOVING",
		"mail-west.internal:12345", target.doveadm, "mail-west.internal:24", target.lmtp,
		"mail-east.internal", "mail-"+source.name, "mail-west.internal", "mail-"+target.name,
		"alice@example.org", user, "backend=west", "backend="+target.name,
	)
}

// shell runs commands as an operator does who stops when one fails.
func (p *province) shell(bin, moving, commands string) error {
	dir, err := os.MkdirTemp("", "move")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // it is empty, or was looked at
	return p.shellIn(dir, bin, moving, commands)
}

func (p *province) shellIn(dir, bin, moving, commands string) error {
	cmd := exec.Command("sh", "-e", "-u", "-c", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MOVING="+filepath.Join(moving, "moving"))
	said := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w from\n%s\nwhich printed\n%s", err, commands, said)
	}
	return nil
}

// run does one block where it says.
func (p *province) run(dir string, b block) error {
	switch where := b.where; {
	case where == "on every gateway":
		for _, bin := range p.bins {
			if err := p.shellIn(dir, bin, "", b.commands); err != nil {
				return err
			}
		}
		return nil
	case where == "on one gateway":
		return p.shellIn(dir, p.bins[0], "", b.commands)
	case where == "on the MTA":
		return p.shellIn(dir, p.mta, "", strings.ReplaceAll(b.commands, "/etc/postfix/transport", p.transport))
	case strings.HasPrefix(where, "on mail-"):
		h := p.hosts[strings.TrimPrefix(where, "on mail-")]
		if h != nil {
			return p.shellIn(dir, h.bin, h.Dir, b.commands)
		}
	}
	return fmt.Errorf("the docs say to run this %q, and this test knows no such place:\n%s", b.where, b.commands)
}

// migrant is one user and everybody who writes to their mailbox.
type migrant struct {
	*province
	name string

	// Owned by whoever moves the user.
	err         error
	home, other string // where the mailbox is at last, and where it was

	mu sync.Mutex
	// Guarded by mu.
	acked   map[string]bool // a client or the MTA was told that it is stored
	unknown map[string]bool // the connection ended before the answer
	written map[string]int  // acked, by who wrote
}

func (p *province) settle(name, mode string) *migrant {
	p.t.Helper()
	m := &migrant{province: p, name: name, acked: map[string]bool{}, unknown: map[string]bool{}, written: map[string]int{}}
	p.gateways[0].command(p.t, "route", "set", name, "backend=east", "mode="+mode)
	entry := fmt.Sprintf("echo '%s lmtp:inet:%s' | postmap", name, p.hosts["east"].lmtp)
	if err := p.shell(p.mta, "", entry); err != nil {
		p.t.Fatal(err)
	}
	return m
}

// stored notes that a message is stored, by somebody's word.
func (m *migrant) stored(writer, token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acked[token] = true
	m.written[writer]++
}

func (m *migrant) doubtful(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unknown[token] = true
}

// progress is how many messages each of the writers has stored.
func (m *migrant) progress() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.written)
}

const (
	writers = 4                      // of each user: two clients, one that logs out between, the MTA
	pace    = 200 * time.Millisecond // between two messages of one
)

// awaitProgress waits until each of the writers has stored some more messages.
func (m *migrant) awaitProgress(n int) error {
	before := m.progress()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for late := time.After(2 * Patience); ; {
		now, behind := m.progress(), writers
		for writer, count := range now {
			if count >= before[writer]+n {
				behind--
			}
		}
		if behind == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-late:
			return fmt.Errorf("%s: %d of %d writers store no more: %v, before %v", m.name, behind, writers, now, before)
		}
	}
}

// move walks the recipe, and waits until everybody writes again.
func (m *migrant) move(from string) error {
	dir, err := os.MkdirTemp("", "move")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what is there was compared
	for _, b := range m.docs.in(m.t, "The recipe", m.words(from, m.name, dir)) {
		if err := m.run(dir, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return m.awaitProgress(3)
}

// hesitate begins to move, up to the copy, and takes the way back.
func (m *migrant) hesitate(from string) error {
	dir := m.hosts[from].bin
	blocks := m.docs.in(m.t, "The recipe", m.words(from, m.name, dir))
	before := slices.IndexFunc(blocks, func(b block) bool { return strings.Contains(b.commands, "rm -f") })
	for _, b := range append(blocks[:before:before], m.docs.in(m.t, "The way back", m.words(from, m.name, dir))...) {
		if err := m.run(dir, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return m.awaitProgress(3)
}

// copies counts the messages of the user at a host, by their subject.
func (m *migrant) copies(at string) map[string]int {
	m.t.Helper()
	h := m.hosts[at]
	out, err := exec.Command(filepath.Join(h.bin, "doveadm"), "-f", "tab", "fetch", "-u", m.name, "hdr.subject", "mailbox", "INBOX").Output()
	if err != nil {
		m.t.Fatalf("read the mail of %s in the %s: %v", m.name, at, err)
	}
	found := map[string]int{}
	for line := range strings.Lines(string(out)) {
		found[strings.TrimSpace(line)]++
	}
	return found
}

// wantAll compares what was stored, by the word of a server, with what is there.
func (m *migrant) wantAll() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	there, left := m.copies(m.home), m.copies(m.other)
	lost, doubled := 0, 0
	for token := range m.acked {
		if there[token] == 0 {
			lost++
			m.t.Errorf("%s: %s is lost; %d of it in the %s", m.name, token, left[token], m.other)
		}
	}
	for token, n := range there {
		if n > 1 {
			doubled++
			m.t.Errorf("%s: %s is there %d times", m.name, token, n)
		}
		if token != "hdr.subject" && !m.acked[token] && !m.unknown[token] {
			m.t.Errorf("%s: %s is there, and was refused", m.name, token)
		}
	}
	m.t.Logf("%s: %d messages stored, %d without an answer, %d lost, %d doubled", m.name, len(m.acked), len(m.unknown), lost, doubled)
}

func TestTheRecipeForMovingAUserLosesNoMail(t *testing.T) {
	t.Parallel()
	p := startProvince(t)
	var movers, waverers []*migrant
	for _, mode := range modes[:3] {
		movers = append(movers, p.settle("mover@"+mode+".example", mode))
		waverers = append(waverers, p.settle("waverer@"+mode+".example", mode))
	}
	over := make(chan struct{})
	var writing, moving sync.WaitGroup
	for _, m := range append(movers, waverers...) {
		m.write(&writing, over)
	}
	walk := func(m *migrant, home, other string, steps ...func() error) {
		moving.Go(func() {
			m.err = m.awaitProgress(3)
			for _, step := range steps {
				if m.err == nil {
					m.err = step()
				}
			}
			m.home, m.other = home, other
		})
	}
	for i := range movers {
		there, wavers := movers[i], waverers[i]
		walk(there, "east", "west", func() error { return there.move("east") }, func() error { return there.move("west") })
		walk(wavers, "west", "east", func() error { return wavers.hesitate("east") }, func() error { return wavers.move("east") })
	}
	moving.Wait()
	close(over)
	writing.Wait()
	for _, m := range append(movers, waverers...) {
		if m.err != nil { // and nobody knows where the mailbox is
			t.Error(m.err)
			continue
		}
		m.wantAll()
	}
}
