//go:build unix

package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// DovecotName is in the certificate of every test backend, beside 127.0.0.1.
const DovecotName = "mail.test"

// DovecotConfig is what a test may choose; its zero value is a good server.
type DovecotConfig struct {
	Password string            // of every user, who exist by being named; default "pw"
	Users    map[string]string // set: only these exist, each with its own password
	Format   string            // of mailboxes: sdbox (default), mdbox or maildir
	Quota    string            // per user, as Dovecot writes it; default "2G"

	// Master and MasterPassword, when set, may log in as anybody, by SASL authzid
	// and as user*master.
	Master         string
	MasterPassword string

	// TrustedNetworks may say by ID where a client really comes from. The
	// default is 127.0.0.0/8; "none" trusts nobody.
	TrustedNetworks string

	Settings string // more lines for the end of dovecot.conf
	CA       *CA    // issues the certificate; default an authority of its own
}

// Dovecot is a running mail backend.
type Dovecot struct {
	// Set once.
	Plain      string // host:port: no TLS, or STARTTLS
	TLS        string // host:port: implicit TLS
	Proxied    string // host:port: as Plain behind a PROXY v1 or v2 header
	ProxiedTLS string // host:port: a PROXY header, then implicit TLS
	CA         *CA
	Dir        string // its folder: dovecot.conf, log, mail/
	t          testing.TB
	program    string
	ports      []int

	// Guarded by mu.
	mu      sync.Mutex
	process *Process
	held    []*heldPort // its ports, from its end to that of Restart; else nil
}

// confValues is what the template of dovecot.conf is filled with.
type confValues struct {
	DovecotConfig
	Dir, Cert, Key                                  string
	PlainPort, TLSPort, ProxiedPort, ProxiedTLSPort int
	Root                                            bool
	UID, GID                                        string
	InternalUser, InternalGroup, LoginUser          string
}

// StartDovecot starts a mail backend and ends it with the test.
func StartDovecot(t testing.TB, c DovecotConfig) *Dovecot {
	t.Helper()
	d := &Dovecot{t: t, program: Program(t, "dovecot", "dovecot-imapd"), Dir: folder(t, "dc"), CA: c.CA}
	if d.CA == nil {
		d.CA = NewCA(t)
	}
	v := confValues{DovecotConfig: c, Dir: d.Dir}
	v.setDefaults()
	v.Cert, v.Key = d.CA.Issue(t, DovecotName, "localhost", "127.0.0.1")
	if err := v.setAccounts(); err != nil {
		t.Fatalf("find a user for Dovecot: %v", err)
	}
	if err := v.writeFiles(); err != nil {
		t.Fatalf("write Dovecot's files: %v", err)
	}
	OnFreePorts(t, 4, func(ports []int) error {
		d.ports = ports
		v.PlainPort, v.TLSPort, v.ProxiedPort, v.ProxiedTLSPort = ports[0], ports[1], ports[2], ports[3]
		d.Plain, d.TLS = Loopback(ports[0]), Loopback(ports[1])
		d.Proxied, d.ProxiedTLS = Loopback(ports[2]), Loopback(ports[3])
		if err := v.writeConf(); err != nil {
			return err
		}
		return d.start()
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of Dovecot at %s:\n%s", d.Plain, d.Log())
		}
	})
	return d
}

func (v *confValues) setDefaults() {
	for field, value := range map[*string]string{
		&v.Password: "pw", &v.Format: "sdbox", &v.Quota: "2G", &v.TrustedNetworks: "127.0.0.0/8",
	} {
		if *field == "" {
			*field = value
		}
	}
	if v.TrustedNetworks == "none" {
		v.TrustedNetworks = ""
	}
}

// setAccounts chooses the system accounts Dovecot runs as. As root: those of its
// package, and nobody for the mail. Otherwise everything is the caller's own.
func (v *confValues) setAccounts() error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	if me.Uid == "0" {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			return err
		}
		v.Root, v.UID, v.GID = true, nobody.Uid, nobody.Gid
		v.InternalUser, v.InternalGroup, v.LoginUser = "dovecot", "dovecot", "dovenull"
		return nil
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		return err
	}
	v.UID, v.GID = me.Uid, me.Gid
	v.InternalUser, v.InternalGroup, v.LoginUser = me.Username, group.Name, me.Username
	return nil
}

// writeFiles writes everything that does not depend on the ports.
func (v *confValues) writeFiles() error {
	// The mail user must be able to walk through.
	if err := os.Chmod(v.Dir, 0o755); err != nil {
		return err
	}
	mail := filepath.Join(v.Dir, "mail")
	if err := os.Mkdir(mail, 0o700); err != nil {
		return err
	}
	uid, err := strconv.Atoi(v.UID)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(v.GID)
	if err != nil {
		return err
	}
	if err := os.Chown(mail, uid, gid); err != nil {
		return err
	}
	var users strings.Builder
	for name, password := range v.Users {
		fmt.Fprintf(&users, "%s:%s\n", name, password)
	}
	// Dovecot's auth process reads both as its own unprivileged user.
	if err := os.WriteFile(filepath.Join(v.Dir, "users"), []byte(users.String()), 0o644); err != nil {
		return err
	}
	masters := v.Master + ":" + v.MasterPassword + "\n"
	return os.WriteFile(filepath.Join(v.Dir, "masters"), []byte(masters), 0o644)
}

func (v *confValues) writeConf() error {
	var conf bytes.Buffer
	if err := dovecotConf.Execute(&conf, v); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(v.Dir, "dovecot.conf"), conf.Bytes(), 0o644)
}

// start runs Dovecot and returns when it serves.
func (d *Dovecot) start() error {
	before := len(d.Log())
	p, err := Start(d.t, d.program, "-F", "-c", filepath.Join(d.Dir, "dovecot.conf"))
	if err != nil {
		return err
	}
	// Dovecot says so after it has all its ports. Asking one of them instead
	// could reach a stranger who took it in between.
	err = p.WaitUntil("start up", func() bool { return strings.Contains(d.Log()[before:], "starting up for imap") })
	if err != nil {
		p.Kill()
		said := d.Log()[before:]
		for _, place := range []string{"Address already in use", "Socket already exists"} {
			if strings.Contains(said+p.Output(), place) {
				return ErrPortTaken
			}
		}
		if said != "" {
			return fmt.Errorf("%w\n%s", err, said)
		}
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process = p
	return nil
}

// Log is Dovecot's log so far. A login is a line with "Login: user=<…>, …
// rip=ADDRESS", the address the backend believes the client to have.
func (d *Dovecot) Log() string {
	log, err := os.ReadFile(filepath.Join(d.Dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Sprintf("(the log cannot be read: %v)", err)
	}
	return string(log)
}

// Stop ends Dovecot as an operator would. Its mail stays, and its ports are kept for it.
func (d *Dovecot) Stop() {
	d.t.Helper()
	d.current().Stop()
	d.hold()
}

// Kill ends all of Dovecot's processes at once, as a power cut would.
func (d *Dovecot) Kill() {
	d.t.Helper()
	d.current().Kill()
	d.hold()
}

// hold keeps the ports until release or the end of the test.
func (d *Dovecot) hold() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held == nil {
		for _, port := range d.ports {
			d.held = append(d.held, holdPort(d.t, port))
		}
		d.t.Cleanup(d.release)
	}
}

func (d *Dovecot) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.held {
		h.release()
	}
	d.held = nil
}

// Restart stops Dovecot if it runs and starts it on the same ports with the same
// mail. While a socket is taken by a process that was killed a moment ago, it waits.
func (d *Dovecot) Restart() {
	d.t.Helper()
	d.Stop()
	defer d.release()
	var err error
	Within(d.t, startTime, "Dovecot to get its ports again", func() bool {
		err = d.start()
		return !errors.Is(err, ErrPortTaken)
	})
	if err != nil {
		d.t.Fatalf("restart Dovecot: %v", err)
	}
}

// PID is the id of Dovecot's main process and of the group of all of them.
func (d *Dovecot) PID() int { return d.current().PID() }

func (d *Dovecot) current() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.process
}
