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

// The procedure is read from docs/moving-users.md and run command by command,
// while clients of the user keep writing.

// procedure holds the command blocks of the document, by heading.
type procedure map[string][]commandBlock

// commandBlock is a block of commands. Its first line is a comment with the host to run
// them on.
type commandBlock struct{ host, commands string }

// readProcedure reads the blocks, which are indented by four spaces.
func readProcedure(t *testing.T) procedure {
	t.Helper()
	text, err := os.ReadFile("../docs/moving-users.md")
	if err != nil {
		t.Fatal(err)
	}
	found, heading, within := procedure{}, "", false
	for line := range strings.Lines(string(text)) {
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case strings.HasPrefix(line, "## "):
			heading = strings.TrimSpace(line[3:])
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

// section returns the blocks below a heading after substitution.
func (r procedure) section(t *testing.T, heading string, substitute *strings.Replacer) (all []commandBlock) {
	t.Helper()
	if len(r[heading]) == 0 {
		t.Fatalf("docs/moving-users.md has no commands below %q", heading)
	}
	for _, b := range r[heading] {
		all = append(all, commandBlock{substitute.Replace(b.host), substitute.Replace(b.commands)})
	}
	return all
}

// mailHost is a mail server of the procedure, with the addresses the procedure uses.
type mailHost struct {
	*testbed.Dovecot
	name          string // east or west
	doveadm, lmtp string // host:port
	commandDir    string // folder with a doveadm for this host
}

// moveCluster is two mail servers, two gateways, Redis and an MTA.
type moveCluster struct {
	t           *testing.T
	procedure   procedure
	hosts       map[string]*mailHost
	gateways    []*gatewayProcess
	commandDirs []string // for each gateway, a folder with an imapgate for it
	transport   string   // the MTA's table; the last line of a user is in effect
	mta         string   // folder with postmap and postqueue
}

func startMoveCluster(t *testing.T) *moveCluster {
	t.Helper()
	p := &moveCluster{t: t, procedure: readProcedure(t), hosts: map[string]*mailHost{}, mta: t.TempDir()}
	ca := testbed.NewCA(t)
	// Each host has its own address, on which no other process requests a port.
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
	writeScript(t, p.mta, "postqueue", "exit 0") // the MTA of the test retries on its own
	return p
}

// freeAddress returns a free port at a loopback address.
func freeAddress(t *testing.T, ip string) string {
	t.Helper()
	l, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nothing was written
	return l.Addr().String()
}

// lmtpConf returns settings of Dovecot 2.3 for LMTP at an address.
func lmtpConf(address string) string {
	return fmt.Sprintf("protocols = imap lmtp\nservice lmtp {\n  inet_listener lmtp {\n%s  }\n}\n", listenConf(address))
}

// lmtpConf24 is lmtpConf for Dovecot 2.4.
func lmtpConf24(address string) string {
	return fmt.Sprintf("protocols {\n  lmtp = yes\n}\nservice lmtp {\n  inet_listener lmtp {\n%s  }\n}\n",
		strings.Replace(listenConf(address), "address =", "listen =", 1))
}

// listenConf returns the address settings of a Dovecot listener.
func listenConf(address string) string {
	ip, port, _ := strings.Cut(address, ":")
	return fmt.Sprintf("    address = %s\n    port = %s\n", ip, port)
}

// writeScript writes an executable shell script.
func writeScript(t *testing.T, dir, name, commands string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+commands+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// prepareHost configures a Dovecot as in "Before the first move".
func (p *moveCluster) prepareHost(h *mailHost) {
	p.t.Helper()
	words := p.substitutions(h.name, "unused@example.org", "")
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
	h.Restart() // for the new listeners
	for _, b := range slices.DeleteFunc(blocks, func(b commandBlock) bool { return strings.HasPrefix(b.host, "dovecot.conf") }) {
		if err := p.runShell(h.commandDir, h.Dir, b.commands); err != nil {
			p.t.Fatal(err)
		}
	}
}

// substitutions replaces the addresses in the docs with those of this test, for a move from
// a host. dir is the working folder, or "".
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

// runShell runs commands and stops at the first failure.
func (p *moveCluster) runShell(bin, moving, commands string) error {
	dir, err := os.MkdirTemp("", "move")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // empty, or already checked
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

// runBlock runs a block on its host.
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
	return fmt.Errorf("the docs name an unknown host %q for these commands:\n%s", b.host, b.commands)
}

// movedUser is one user and all writers to their mailbox.
type movedUser struct {
	*moveCluster
	name string

	// Owned by the goroutine that moves the user.
	err                       error
	currentHost, previousHost string // of the mailbox

	mu sync.Mutex
	// Guarded by mu.
	acked      map[string]bool // messages confirmed as stored
	unanswered map[string]bool // messages whose connection ended before the response
	written    map[string]int  // confirmed messages by writer
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

// recordStored records that a server has confirmed a message.
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

// storedCounts returns the number of confirmed messages of each writer.
func (m *movedUser) storedCounts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.written)
}

const (
	writerCount   = 4                      // per user: two clients, one that logs out in between, and the MTA
	writeInterval = 200 * time.Millisecond // between two messages of one writer
)

// awaitProgress waits until each writer has stored n more messages.
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

// moveFrom runs the procedure and waits until all writers have stored more messages.
func (m *movedUser) moveFrom(from string) error {
	dir, err := os.MkdirTemp("", "move")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // already compared
	for _, b := range m.procedure.section(m.t, "The recipe", m.substitutions(from, m.name, dir)) {
		if err := m.runBlock(dir, b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return m.awaitProgress(3)
}

// moveAndRevert runs the procedure up to the copy, and then reverts it.
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

// countCopies counts the user's messages at a host by subject.
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

// checkStored compares the confirmed messages with the stored ones.
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
	m.t.Logf("%s: %d messages stored, %d without a response, %d lost, %d duplicated", m.name, len(m.acked), len(m.unanswered), lost, duplicated)
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
		if m.err != nil { // the host of the mailbox is unknown
			t.Error(m.err)
			continue
		}
		m.checkStored()
	}
}
