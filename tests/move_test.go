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

// procedure is the blocks of commands of the section, by the heading above them.
type procedure map[string][]commandBlock

// commandBlock is commands, and where they are to be run: the comment that is its first
// line.
type commandBlock struct{ host, commands string }

// readProcedure finds the blocks: lines that are indented by four spaces.
func readProcedure(t *testing.T) procedure {
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
	found, heading, within := procedure{}, "", false
	for line := range strings.Lines(section) {
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case strings.HasPrefix(line, "### "):
			heading = strings.TrimSpace(line[4:])
		case indented && within:
			last := &found[heading][len(found[heading])-1]
			last.commands += code
		case indented:
			found[heading] = append(found[heading], commandBlock{strings.TrimSpace(strings.TrimPrefix(code, "# ")), ""})
		}
		within = indented
	}
	return found
}

// section gives the blocks below a heading with other words in the place of those in
// the text.
func (r procedure) section(t *testing.T, heading string, substitute *strings.Replacer) (all []commandBlock) {
	t.Helper()
	if len(r[heading]) == 0 {
		t.Fatalf("docs/OPERATIONS.md has no commands below %q", heading)
	}
	for _, b := range r[heading] {
		all = append(all, commandBlock{substitute.Replace(b.host), substitute.Replace(b.commands)})
	}
	return all
}

// mailHost is a mail server of the recipe: a Dovecot, and what the recipe calls its
// addresses.
type mailHost struct {
	*testbed.Dovecot
	name          string // east or west
	doveadm, lmtp string // host:port
	commandDir    string // has a doveadm of this host
}

// moveCluster is two mail servers, two gateways, Redis and an MTA.
type moveCluster struct {
	t           *testing.T
	procedure   procedure
	hosts       map[string]*mailHost
	gateways    []*gatewayProcess
	commandDirs []string // for each gateway: has an imapgate that asks it
	transport   string   // the MTA's table; the last line of a user holds
	mta         string   // has postmap and postqueue
}

func startMoveCluster(t *testing.T) *moveCluster {
	t.Helper()
	p := &moveCluster{t: t, procedure: readProcedure(t), hosts: map[string]*mailHost{}, mta: t.TempDir()}
	ca := testbed.NewCA(t)
	// An address for each: nobody else asks the kernel for a port there.
	for name, ip := range map[string]string{"east": "127.0.83.1", "west": "127.0.83.2"} {
		p.hosts[name] = &mailHost{name: name, doveadm: freeAddress(t, ip), lmtp: freeAddress(t, ip), commandDir: t.TempDir()}
	}
	for _, h := range p.hosts {
		h.Dovecot = testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca, Settings: lmtpConf(h.lmtp), Settings24: lmtpConf24(h.lmtp)})
		p.prepareHost(h)
	}
	redis := testbed.StartRedis(t)
	sections := fmt.Sprintf("backends:\n  east: {address: %q, tls: none, mux: {credential_cache: true}}\n"+
		"  west: {address: %q, tls: none, mux: {credential_cache: true}}\nredis: {addresses: [%q]}",
		p.hosts["east"].Plain, p.hosts["west"].Plain, redis.Address)
	for range 2 {
		b := startProcess(t, ca, sections)
		bin := t.TempDir()
		writeScript(t, bin, "imapgate", fmt.Sprintf(`exec %s "$@" --config %s`, b.path, b.writeOperatorConfig(t)))
		p.gateways, p.commandDirs = append(p.gateways, b), append(p.commandDirs, bin)
	}
	p.transport = filepath.Join(p.mta, "transport")
	writeScript(t, p.mta, "postmap", "cat >>"+p.transport)
	writeScript(t, p.mta, "postqueue", "exit 0") // the MTA of the test tries again by itself
	return p
}

// freeAddress asks the kernel for a port at an address of this machine.
func freeAddress(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nothing was written
	return l.Addr().String()
}

// lmtpConf is the settings of a Dovecot that takes deliveries at an address.
func lmtpConf(address string) string {
	return fmt.Sprintf("protocols = imap lmtp\nservice lmtp {\n  inet_listener lmtp {\n%s  }\n}\n", listenConf(address))
}

// lmtpConf24 is lmtpConf in the terms of Dovecot 2.4.
func lmtpConf24(address string) string {
	return fmt.Sprintf("protocols {\n  lmtp = yes\n}\nservice lmtp {\n  inet_listener lmtp {\n%s  }\n}\n",
		strings.Replace(listenConf(address), "address =", "listen =", 1))
}

// listenConf is where a listener of Dovecot's listens.
func listenConf(address string) string {
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

// prepareHost sets a Dovecot up as "Before the first move" says.
func (p *moveCluster) prepareHost(h *mailHost) {
	p.t.Helper()
	words := p.substitutions(h.name, "nobody@example.org", "")
	blocks := p.procedure.section(p.t, "Before the first move", words)
	file := filepath.Join(h.Dir, "dovecot.conf")
	conf, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	i := slices.IndexFunc(blocks, func(b commandBlock) bool { return b.host == "dovecot.conf of Dovecot "+dovecotSeries(p.t) })
	if i < 0 {
		p.t.Fatalf("there are no settings for Dovecot %s in %v", dovecotSeries(p.t), blocks)
	}
	listen, userdb := listenConf(h.doveadm), "\nuserdb {"
	if dovecotSeries(p.t) != "2.3" {
		listen, userdb = strings.Replace(listen, "address =", "listen =", 1), "\nuserdb static {"
	}
	settings := strings.Replace(blocks[i].commands, "    port = 12345\n", listen, 1)
	settings = strings.ReplaceAll(settings, "$MOVING", h.InnerPath(filepath.Join(h.Dir, "moving")))
	conf = bytes.Replace(conf, []byte(userdb), []byte("\n"+settings+userdb), 1)
	if err := os.WriteFile(file, conf, 0o644); err != nil {
		p.t.Fatal(err)
	}
	writeScript(p.t, h.commandDir, "doveadm", fmt.Sprintf(`exec %s "$@"`, h.DoveadmCommand()))
	h.Restart() // listeners of its own are new
	for _, b := range slices.DeleteFunc(blocks, func(b commandBlock) bool { return strings.HasPrefix(b.host, "dovecot.conf") }) {
		if err := p.runShell(h.commandDir, h.Dir, b.commands); err != nil {
			p.t.Fatal(err)
		}
	}
}

// substitutions puts the addresses of this test in the place of those in the docs, for a
// move that begins at a host. "" as the working folder is none.
func (p *moveCluster) substitutions(from, user, dir string) *strings.Replacer {
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

// runShell runs commands as an operator does who stops when one fails.
func (p *moveCluster) runShell(bin, moving, commands string) error {
	dir, err := os.MkdirTemp("", "move")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // it is empty, or was looked at
	return p.runShellIn(dir, bin, moving, commands)
}

func (p *moveCluster) runShellIn(dir, bin, moving, commands string) error {
	cmd := exec.Command("sh", "-e", "-u", "-c", commands)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "MOVING="+filepath.Join(moving, "moving"))
	output := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w from\n%s\nwhich printed\n%s", err, commands, output)
	}
	return nil
}

// runBlock does one block where it says.
func (p *moveCluster) runBlock(dir string, b commandBlock) error {
	switch where := b.host; {
	case where == "on every gateway":
		for _, bin := range p.commandDirs {
			if err := p.runShellIn(dir, bin, "", b.commands); err != nil {
				return err
			}
		}
		return nil
	case where == "on one gateway":
		return p.runShellIn(dir, p.commandDirs[0], "", b.commands)
	case where == "on the MTA":
		return p.runShellIn(dir, p.mta, "", strings.ReplaceAll(b.commands, "/etc/postfix/transport", p.transport))
	case strings.HasPrefix(where, "on mail-"):
		h := p.hosts[strings.TrimPrefix(where, "on mail-")]
		if h != nil {
			return p.runShellIn(dir, h.commandDir, h.Dir, b.commands)
		}
	}
	return fmt.Errorf("the docs say to run this %q, and this test knows no such place:\n%s", b.host, b.commands)
}

// movedUser is one user and everybody who writes to their mailbox.
type movedUser struct {
	*moveCluster
	name string

	// Owned by whoever moves the user.
	err                       error
	currentHost, previousHost string // where the mailbox is at last, and where it was

	mu sync.Mutex
	// Guarded by mu.
	acked      map[string]bool // a client or the MTA was told that it is stored
	unanswered map[string]bool // the connection ended before the answer
	written    map[string]int  // acked, by who wrote
}

func (p *moveCluster) addUser(name, mode string) *movedUser {
	p.t.Helper()
	m := &movedUser{moveCluster: p, name: name, acked: map[string]bool{}, unanswered: map[string]bool{}, written: map[string]int{}}
	p.gateways[0].runCommand(p.t, "route", "set", name, "backend=east", "mode="+mode)
	entry := fmt.Sprintf("echo '%s lmtp:inet:%s' | postmap", name, p.hosts["east"].lmtp)
	if err := p.runShell(p.mta, "", entry); err != nil {
		p.t.Fatal(err)
	}
	return m
}

// recordStored notes that a message is stored, by somebody's word.
func (m *movedUser) recordStored(writer, token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.acked[token] = true
	m.written[writer]++
}

func (m *movedUser) recordUnanswered(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unanswered[token] = true
}

// storedCounts is how many messages each of the writers has stored.
func (m *movedUser) storedCounts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.written)
}

const (
	writerCount   = 4                      // of each user: two clients, one that logs out between, the MTA
	writeInterval = 200 * time.Millisecond // between two messages of one
)

// awaitProgress waits until each of the writers has stored some more messages.
func (m *movedUser) awaitProgress(n int) error {
	before := m.storedCounts()
	tick := time.NewTicker(writeInterval)
	defer tick.Stop()
	for timeout := time.After(2 * Timeout); ; {
		now, lagging := m.storedCounts(), writerCount
		for writer, count := range now {
			if count >= before[writer]+n {
				lagging--
			}
		}
		if lagging == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-timeout:
			return fmt.Errorf("%s: %d of %d writers store no more: %v, before %v", m.name, lagging, writerCount, now, before)
		}
	}
}

// moveFrom walks the recipe, and waits until everybody writes again.
func (m *movedUser) moveFrom(from string) error {
	dir, err := os.MkdirTemp("", "move")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // what is there was compared
	for _, b := range m.procedure.section(m.t, "The recipe", m.substitutions(from, m.name, dir)) {
		if err := m.runBlock(dir, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return m.awaitProgress(3)
}

// moveAndRevert begins to move, up to the copy, and takes the way back.
func (m *movedUser) moveAndRevert(from string) error {
	dir := m.hosts[from].commandDir
	blocks := m.procedure.section(m.t, "The recipe", m.substitutions(from, m.name, dir))
	before := slices.IndexFunc(blocks, func(b commandBlock) bool { return strings.Contains(b.commands, "rm -f") })
	for _, b := range append(blocks[:before:before], m.procedure.section(m.t, "The way back", m.substitutions(from, m.name, dir))...) {
		if err := m.runBlock(dir, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return m.awaitProgress(3)
}

// countCopies counts the messages of the user at a host, by their subject.
func (m *movedUser) countCopies(at string) map[string]int {
	m.t.Helper()
	h := m.hosts[at]
	out, err := exec.Command(filepath.Join(h.commandDir, "doveadm"), "-f", "tab", "fetch", "-u", m.name, "hdr.subject", "mailbox", "INBOX").Output()
	if err != nil {
		m.t.Fatalf("read the mail of %s in the %s: %v", m.name, at, err)
	}
	found := map[string]int{}
	for line := range strings.Lines(string(out)) {
		found[strings.TrimSpace(line)]++
	}
	return found
}

// checkStored compares what was stored, by the word of a server, with what is there.
func (m *movedUser) checkStored() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	there, left := m.countCopies(m.currentHost), m.countCopies(m.previousHost)
	lost, duplicated := 0, 0
	for token := range m.acked {
		if there[token] == 0 {
			lost++
			m.t.Errorf("%s: %s is lost; %d of it in the %s", m.name, token, left[token], m.previousHost)
		}
	}
	for token, n := range there {
		if n > 1 {
			duplicated++
			m.t.Errorf("%s: %s is there %d times", m.name, token, n)
		}
		if token != "hdr.subject" && !m.acked[token] && !m.unanswered[token] {
			m.t.Errorf("%s: %s is there, and was refused", m.name, token)
		}
	}
	m.t.Logf("%s: %d messages stored, %d without an answer, %d lost, %d doubled", m.name, len(m.acked), len(m.unanswered), lost, duplicated)
}

func TestMoveProcedureLosesNoMail(t *testing.T) {
	t.Parallel()
	p := startMoveCluster(t)
	var movers, reverters []*movedUser
	for _, mode := range testedModes[:3] {
		movers = append(movers, p.addUser("mover@"+mode+".example", mode))
		reverters = append(reverters, p.addUser("waverer@"+mode+".example", mode))
	}
	stop := make(chan struct{})
	var writing, moving sync.WaitGroup
	for _, m := range append(movers, reverters...) {
		m.startWriters(&writing, stop)
	}
	startMove := func(m *movedUser, home, other string, steps ...func() error) {
		moving.Go(func() {
			m.err = m.awaitProgress(3)
			for _, step := range steps {
				if m.err == nil {
					m.err = step()
				}
			}
			m.currentHost, m.previousHost = home, other
		})
	}
	for i := range movers {
		there, wavers := movers[i], reverters[i]
		startMove(there, "east", "west", func() error { return there.moveFrom("east") }, func() error { return there.moveFrom("west") })
		startMove(wavers, "west", "east", func() error { return wavers.moveAndRevert("east") }, func() error { return wavers.moveFrom("east") })
	}
	moving.Wait()
	close(stop)
	writing.Wait()
	for _, m := range append(movers, reverters...) {
		if m.err != nil { // and nobody knows where the mailbox is
			t.Error(m.err)
			continue
		}
		m.checkStored()
	}
}
