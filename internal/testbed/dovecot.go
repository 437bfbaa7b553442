//go:build unix

package testbed

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"imapgate/internal/testkit"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// DovecotName is the DNS name in the certificate of every test backend. The certificate
// is also valid for localhost and 127.0.0.1.
const DovecotName = "mail.test"

// Endpoints holds the addresses of a mail backend.
type Endpoints struct {
	Plain string // host:port: no TLS, or STARTTLS
	TLS   string // host:port: implicit TLS
	CA    *CA    // issuer of its certificate for DovecotName
}

// DovecotConfig holds the settings a test may choose; the zero value is a usable server.
type DovecotConfig struct {
	Password string            // one password for any user name; default "pw"
	Users    map[string]string // if set, the only users, name to password
	Format   string            // mailbox format: sdbox (default), mdbox or maildir
	Quota    string            // per user, in Dovecot's syntax; default "2G"
	// SmallQuota is the quota of users whose names begin with "small"; default Quota.
	SmallQuota string

	// Master and MasterPassword, when set, may log in as any user, by SASL authzid
	// and as user*master.
	Master         string
	MasterPassword string

	// TrustedNetworks may set a client's address by ID. The default is 127.0.0.0/8;
	// "none" trusts no network.
	TrustedNetworks string

	// LoginsPerProcess is how many logins one process serves, one after the other;
	// default 1000, because the start of a process takes longer than all else of a short
	// session. Processes is how many processes wait for a login; default 0.
	LoginsPerProcess, Processes int

	Tokens *TokenCheck // if set, enables OAUTHBEARER and XOAUTH2

	// GatewaySettings, when set, returns the settings that replace everything about
	// gateways: trusted networks, limits of the services, passdbs and userdb. Master,
	// MasterPassword and Tokens then only write their files.
	GatewaySettings func(*Dovecot) string

	// Settings and Settings24 are appended to dovecot.conf of Dovecot 2.3 and 2.4. If
	// only the one for the other version is set, the test is skipped.
	Settings, Settings24 string

	CA *CA // issuer of the certificate; default: a new one

	// ClientCA, when set, makes client certificates of this CA mandatory.
	ClientCA *CA
}

// TokenCheck configures how Dovecot verifies tokens.
type TokenCheck struct {
	Mechanisms    string // "oauthbearer xoauth2"
	Introspection string // URL with the client's name and secret
}

// Dovecot is a running mail backend.
type Dovecot struct {
	// Set once.
	Plain      string // host:port: no TLS, or STARTTLS
	TLS        string // host:port: implicit TLS
	Proxied    string // host:port: a PROXY v1 or v2 header, then as Plain
	ProxiedTLS string // host:port: a PROXY header, then implicit TLS
	CA         *CA
	Dir        string // its folder: dovecot.conf, log, mail/
	t          testing.TB
	sysroot    sysroot
	program    string
	ports      ReservedPorts

	// Guarded by mu.
	mu      sync.Mutex
	process *Process
}

// confValues are the values of the templates of dovecot.conf.
type confValues struct {
	DovecotConfig
	hostDir                                         string // path on the machine
	Version, Dir, Cert, Key, ClientRoots            string // paths inside Dovecot's root
	Own                                             string // from GatewaySettings
	PlainPort, TLSPort, ProxiedPort, ProxiedTLSPort int
	Root                                            bool
	UID, GID                                        string
	InternalUser, InternalGroup, LoginUser          string
}

// StartDovecot starts a mail backend and stops it when the test ends. It skips the test
// if Cyrus is the mail server of the run.
func StartDovecot(t testing.TB, c DovecotConfig) *Dovecot {
	t.Helper()
	if HasCyrus() {
		t.Skip("this test needs Dovecot, and Cyrus is the mail server of this run")
	}
	d := &Dovecot{t: t, CA: c.CA}
	d.sysroot, d.program = locateProgram(t, "dovecot", "dovecot-imapd")
	d.Dir = d.sysroot.makeDir(t, "dc")
	if d.CA == nil {
		d.CA = NewCA(t)
	}
	v := confValues{DovecotConfig: c, hostDir: d.Dir, Dir: d.sysroot.innerPath(d.Dir), Version: DovecotVersion(t)}
	if c.GatewaySettings != nil {
		v.Own = c.GatewaySettings(d)
	}
	if extra := map[bool]string{true: c.Settings, false: c.Settings24}[v.isVersion23()]; extra == "" && c.Settings+c.Settings24 != "" {
		t.Skipf("this test has no settings for Dovecot %s", v.Version)
	}
	v.setDefaults()
	cert, key := d.CA.Issue(t, DovecotName, "localhost", "127.0.0.1")
	if c.ClientCA != nil {
		v.ClientRoots = d.sysroot.copyIn(t, c.ClientCA.File, d.Dir, "clients.pem")
	}
	v.Cert, v.Key = d.sysroot.copyIn(t, cert, d.Dir, "cert.pem"), d.sysroot.copyIn(t, key, d.Dir, "key.pem")
	if err := v.setAccounts(); err != nil {
		t.Fatalf("find a user for Dovecot: %v", err)
	}
	if err := v.writeFiles(); err != nil {
		t.Fatalf("write Dovecot's files: %v", err)
	}
	OnFreePorts(t, 4, func(ports []int) error {
		d.ports.Numbers = ports
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
	if v.SmallQuota == "" {
		v.SmallQuota = v.Quota
	}
	v.LoginsPerProcess = cmp.Or(v.LoginsPerProcess, 1000)
}

// setAccounts chooses the system accounts Dovecot runs as. For root, these are the
// accounts of its package, and an unprivileged one for mail. Otherwise the caller's account
// is used for everything.
func (v *confValues) setAccounts() error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	if me.Uid == "0" {
		unprivileged, err := user.Lookup("nobody")
		if err != nil {
			return err
		}
		v.Root, v.UID, v.GID = true, unprivileged.Uid, unprivileged.Gid
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
	// The mail user needs to traverse the folder.
	if err := os.Chmod(v.hostDir, 0o755); err != nil {
		return err
	}
	mail := filepath.Join(v.hostDir, "mail")
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
	if err := os.WriteFile(filepath.Join(v.hostDir, "users"), []byte(users.String()), 0o644); err != nil {
		return err
	}
	if v.Tokens != nil {
		text := fmt.Sprintf("introspection_mode = post\nintrospection_url = %s\nusername_attribute = email\nactive_attribute = active\nactive_value = true\n", v.Tokens.Introspection)
		if err := os.WriteFile(filepath.Join(v.hostDir, "oauth2"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	masters := v.Master + ":" + v.MasterPassword + "\n"
	return os.WriteFile(filepath.Join(v.hostDir, "masters"), []byte(masters), 0o644)
}

func (v *confValues) writeConf() error {
	template := dovecot23
	if !v.isVersion23() {
		template = dovecot24
	}
	var conf bytes.Buffer
	if err := template.Execute(&conf, v); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(v.hostDir, "dovecot.conf"), conf.Bytes(), 0o644)
}

// isVersion23 reports whether the server reads the settings of Dovecot 2.3, whose names
// 2.4 has changed.
func (v *confValues) isVersion23() bool { return strings.HasPrefix(v.Version, "2.3.") }

// start runs Dovecot and returns when it serves.
func (d *Dovecot) start() error {
	logStart := len(d.Log())
	p, err := d.sysroot.start(d.t, d.program, "-F", "-c", filepath.Join(d.sysroot.innerPath(d.Dir), "dovecot.conf"))
	if err != nil {
		return err
	}
	// Dovecot logs this after it has bound all its ports. Connecting to a port instead
	// could reach another process that has taken it.
	err = p.WaitUntil("start up", func() bool { return strings.Contains(d.Log()[logStart:], "starting up for imap") })
	if err != nil {
		p.Kill()
		logged := d.Log()[logStart:]
		for _, message := range []string{"Address already in use", "Socket already exists"} {
			if strings.Contains(logged+p.Output(), message) {
				return ErrPortTaken
			}
		}
		if logged != "" {
			return fmt.Errorf("%w\n%s", err, logged)
		}
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process = p
	return nil
}

// Logins returns the log lines about logins of a user, or of all users for "". Each has
// rip=ADDRESS, the client's address as Dovecot knows it, and session=<ID>.
func (d *Dovecot) Logins(user string) (lines []string) {
	for line := range strings.Lines(d.Log()) {
		_, login, found := strings.Cut(line, " Login: user=<")
		if !found {
			_, login, found = strings.Cut(line, " Logged in: user=<") // since 2.4
		}
		if found && (user == "" || strings.HasPrefix(login, user+">")) {
			lines = append(lines, line)
		}
	}
	return lines
}

// Log returns Dovecot's log so far.
func (d *Dovecot) Log() string {
	log, err := os.ReadFile(filepath.Join(d.Dir, "log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Sprintf("(the log cannot be read: %v)", err)
	}
	return string(log)
}

// Stop shuts Dovecot down as an operator would. Its mail and its ports are kept.
func (d *Dovecot) Stop() {
	d.t.Helper()
	d.currentProcess().Stop()
	d.ports.Reserve(d.t)
}

// Kill ends all of Dovecot's processes at once, as a power failure would.
func (d *Dovecot) Kill() {
	d.t.Helper()
	d.currentProcess().Kill()
	d.ports.Reserve(d.t)
}

// Restart stops Dovecot if it runs and starts it on the same ports with the same
// mail. It waits while a process that was just killed still has a socket open.
func (d *Dovecot) Restart() {
	d.t.Helper()
	d.Stop()
	defer d.ports.Release()
	var err error
	testkit.Eventually(d.t, "Dovecot to get its ports again", func() bool {
		err = d.start()
		return !errors.Is(err, ErrPortTaken)
	})
	if err != nil {
		d.t.Fatalf("restart Dovecot: %v", err)
	}
}

// DovecotVersion returns the version that StartDovecot starts: "2.3.19.1".
func DovecotVersion(t testing.TB) string {
	t.Helper()
	p, program := locateProgram(t, "dovecot", "dovecot-imapd")
	version, _, _ := strings.Cut(p.readVersion(t, program), "-")
	return version
}

// DoveadmCommand returns the shell command that runs doveadm for this server, without
// arguments.
func (d *Dovecot) DoveadmCommand() string {
	_, program := locateProgram(d.t, "doveadm", "dovecot-core")
	command := program + " -c " + d.InnerPath(filepath.Join(d.Dir, "dovecot.conf"))
	if d.sysroot.root != "" {
		command = "chroot " + d.sysroot.root + " " + command
	}
	return command
}

// InnerPath returns a path as Dovecot sees it.
func (d *Dovecot) InnerPath(path string) string { return d.sysroot.innerPath(path) }

// Endpoints returns the addresses and the CA of the backend.
func (d *Dovecot) Endpoints() Endpoints { return Endpoints{d.Plain, d.TLS, d.CA} }

// PID returns the id of Dovecot's main process, which is also its process group.
func (d *Dovecot) PID() int { return d.currentProcess().PID() }

func (d *Dovecot) currentProcess() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.process
}
