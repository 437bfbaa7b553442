//go:build unix

package testbed

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"
)

// cyrusMasterPath is the path of Cyrus in Debian's package cyrus-imapd.
const cyrusMasterPath = "/usr/lib/cyrus/bin/master"

// CyrusConfig holds the settings a test may choose.
type CyrusConfig struct {
	Users map[string]string // name to password; each has an INBOX

	// Master and MasterPassword, when set, may log in as any user, by SASL authzid.
	Master         string
	MasterPassword string

	// Secured accepts passwords over TLS only. Unchecked makes the server's password
	// check unavailable.
	Secured, Unchecked bool

	CA *CA // issuer of the certificate; default: a new one
}

// Cyrus is a running mail backend. Its mail survives a Kill and a Restart.
type Cyrus struct {
	// Set once.
	Plain   string // host:port: no TLS, or STARTTLS
	TLS     string // host:port: implicit TLS
	CA      *CA
	Dir     string // its folder: imapd.conf, cyrus.conf, conf/, mail/
	t       testing.TB
	sysroot sysroot
	ports   ReservedPorts
	uid     int
	gid     int

	// Guarded by mu.
	mu      sync.Mutex
	process *Process
}

// cyrusRoot returns the root folder named by RootEnv if Cyrus is installed in it, else
// "". The machine itself is not searched: Debian's packages of Cyrus and Dovecot exclude
// each other.
func cyrusRoot() string {
	root := os.Getenv(RootEnv)
	if root == "" {
		return ""
	}
	if _, err := os.Stat(filepath.Join(root, cyrusMasterPath)); err != nil {
		return ""
	}
	return root
}

// HasCyrus reports whether the root named by RootEnv has Cyrus. Cyrus is then the mail
// server of the run, and tests that need Dovecot are skipped.
func HasCyrus() bool { return cyrusRoot() != "" }

// StartCyrus starts a mail backend and stops it when the test ends. It skips the test
// if there is no Cyrus.
func StartCyrus(t testing.TB, c CyrusConfig) *Cyrus {
	t.Helper()
	if !HasCyrus() {
		t.Skipf("this test needs a root with Cyrus, which .ci/root makes, in %s", RootEnv)
	}
	d := &Cyrus{t: t, CA: c.CA, sysroot: sysroot{cyrusRoot()}}
	d.Dir = d.sysroot.makeDir(t, "cy")
	if d.CA == nil {
		d.CA = NewCA(t)
	}
	if err := d.findAccount(); err != nil {
		t.Fatalf("find the user of Cyrus: %v", err)
	}
	accounts := map[string]string{cyrusAdmin: cyrusAdmin}
	for name, password := range c.Users {
		accounts[name] = password
	}
	if c.Master != "" {
		accounts[c.Master] = c.MasterPassword
	}
	if err := d.writeFiles(accounts); err != nil {
		t.Fatalf("write the files of Cyrus: %v", err)
	}
	OnFreePorts(t, 2, func(ports []int) error {
		d.ports.Numbers = ports
		d.Plain, d.TLS = Loopback(ports[0]), Loopback(ports[1])
		if err := d.writeConf(c); err != nil {
			return err
		}
		return d.start()
	})
	if c.Unchecked { // the administrator cannot log in either
		return d
	}
	if err := d.createInboxes(c.Users); err != nil {
		t.Fatalf("make mailboxes in Cyrus: %v", err)
	}
	return d
}

// cyrusAdmin is the administrator's name and password.
const cyrusAdmin = "cyrus"

// findAccount reads the ids that Cyrus runs as from the root's own passwd file, because
// the machine's accounts differ.
func (d *Cyrus) findAccount() error {
	table, err := os.ReadFile(filepath.Join(d.sysroot.root, "etc/passwd"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		fields := strings.Split(line, ":")
		if len(fields) < 4 || fields[0] != "cyrus" {
			continue
		}
		if d.uid, err = strconv.Atoi(fields[2]); err != nil {
			return err
		}
		d.gid, err = strconv.Atoi(fields[3])
		return err
	}
	return user.UnknownUserError("cyrus")
}

// writeFiles writes everything that does not depend on the ports.
func (d *Cyrus) writeFiles(accounts map[string]string) error {
	if err := os.Chmod(d.Dir, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"conf/db", "conf/socket", "conf/proc", "conf/lock", "conf/user", "conf/quota", "mail"} {
		if err := os.MkdirAll(filepath.Join(d.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	cert, key := d.CA.Issue(d.t, DovecotName, "localhost", "127.0.0.1")
	d.sysroot.copyIn(d.t, cert, d.Dir, "cert.pem")
	d.sysroot.copyIn(d.t, key, d.Dir, "key.pem")
	for name, password := range accounts {
		if err := d.setPassword(name, password); err != nil {
			return err
		}
	}
	return filepath.WalkDir(d.Dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, d.uid, d.gid))
	})
}

// setPassword sets a user's password and creates the user if needed.
func (d *Cyrus) setPassword(name, password string) error {
	local, realm, found := strings.Cut(name, "@")
	if !found {
		realm = DovecotName // the realm of Cyrus users without a domain
	}
	set := d.sysroot.command("/usr/sbin/saslpasswd2", "-p", "-c", "-f", d.sysroot.innerPath(filepath.Join(d.Dir, "sasldb2")), "-u", realm, local)
	set.Stdin = strings.NewReader(password)
	if out, err := set.CombinedOutput(); err != nil {
		return fmt.Errorf("saslpasswd2 for %s: %w: %s", name, err, out)
	}
	return nil
}

// AddUsers creates users while Cyrus runs, each with this password and an INBOX.
func (d *Cyrus) AddUsers(password string, names ...string) error {
	users := map[string]string{}
	for _, name := range names {
		users[name] = password
		if err := d.setPassword(name, password); err != nil {
			return err
		}
	}
	return d.createInboxes(users)
}

// writeConf writes imapd.conf and cyrus.conf.
func (d *Cyrus) writeConf(c CyrusConfig) error {
	values := struct {
		CyrusConfig
		Dir, Name, Admin, Plain, TLS string
	}{c, d.sysroot.innerPath(d.Dir), DovecotName, cyrusAdmin, d.Plain, d.TLS}
	for name, text := range map[string]*template.Template{"imapd.conf": imapdConf, "cyrus.conf": cyrusConf} {
		var conf strings.Builder
		if err := text.Execute(&conf, values); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.Dir, name), []byte(conf.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// start runs Cyrus and returns when it serves.
func (d *Cyrus) start() error {
	inside := d.sysroot.innerPath(d.Dir)
	p, err := d.sysroot.start(d.t, cyrusMasterPath, "-D", "-C", inside+"/imapd.conf", "-M", inside+"/cyrus.conf", "-p", inside+"/pid")
	if err != nil {
		return err
	}
	if err = p.WaitUntil("greet", d.isReady); err != nil {
		p.Kill()
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.process = p
	return nil
}

// isReady reports whether both ports send a greeting. Accepting is not enough: Cyrus
// listens before it has recovered its databases, and its first processes may still exit.
func (d *Cyrus) isReady() bool {
	dialer := &net.Dialer{Timeout: time.Second}
	plain, err := dialer.Dial("tcp", d.Plain)
	if err != nil {
		return false
	}
	defer plain.Close() // nothing was written
	secured, err := tls.DialWithDialer(dialer, "tcp", d.TLS, d.CA.ClientTLS(DovecotName))
	if err != nil {
		return false
	}
	defer secured.Close() // nothing was written
	for _, conn := range []net.Conn{plain, secured} {
		_ = conn.SetReadDeadline(time.Now().Add(startTimeout)) // else the read fails
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasPrefix(line, "* OK ") {
			return false
		}
	}
	return true
}

// createInboxes creates an INBOX for each user, as the administrator.
func (d *Cyrus) createInboxes(users map[string]string) error {
	dialer := &net.Dialer{Timeout: startTimeout}
	conn, err := tls.DialWithDialer(dialer, "tcp", d.TLS, d.CA.ClientTLS(DovecotName))
	if err != nil {
		return err
	}
	defer conn.Close() // every command has its response
	if err := conn.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	commands := []string{"LOGIN " + cyrusAdmin + " " + cyrusAdmin}
	for name := range users {
		commands = append(commands, fmt.Sprintf("CREATE %q", "user/"+name))
	}
	slices.Sort(commands[1:])
	for _, command := range append(commands, "LOGOUT") {
		if _, err := fmt.Fprintf(conn, "a %s\r\n", command); err != nil {
			return err
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return fmt.Errorf("%s: %w", command, err)
			}
			if strings.HasPrefix(line, "a OK") {
				break
			}
			if strings.HasPrefix(line, "a ") {
				return fmt.Errorf("%s: %s", command, line)
			}
		}
	}
	return nil
}

// Stop shuts Cyrus down as an operator would. Its mail and its ports are kept.
func (d *Cyrus) Stop() {
	d.t.Helper()
	d.currentProcess().Stop()
	d.ports.Reserve(d.t)
}

// Kill ends all processes at once, as a power failure would.
func (d *Cyrus) Kill() {
	d.t.Helper()
	d.currentProcess().Kill()
	d.ports.Reserve(d.t)
}

// Restart stops Cyrus if it runs and starts it on the same ports with the same
// mail.
func (d *Cyrus) Restart() {
	d.t.Helper()
	d.Stop()
	defer d.ports.Release()
	if err := d.start(); err != nil {
		d.t.Fatalf("restart Cyrus: %v", err)
	}
}

// Version returns the version in the greeting: "3.6.1-…".
func (d *Cyrus) Version() string {
	d.t.Helper()
	conn, err := net.DialTimeout("tcp", d.Plain, startTimeout)
	if err != nil {
		d.t.Fatalf("ask Cyrus for its version: %v", err)
	}
	defer conn.Close()                                     // nothing was written
	_ = conn.SetReadDeadline(time.Now().Add(startTimeout)) // else the read fails
	greeting, err := bufio.NewReader(conn).ReadString('\n')
	_, version, ok := strings.Cut(greeting, "Cyrus IMAP ")
	if err != nil || !ok {
		d.t.Fatalf("ask Cyrus for its version: %q, %v", greeting, err)
	}
	version, _, _ = strings.Cut(version, " ")
	return version
}

// Endpoints returns the addresses and the CA of the backend.
func (d *Cyrus) Endpoints() Endpoints { return Endpoints{d.Plain, d.TLS, d.CA} }

func (d *Cyrus) currentProcess() *Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.process
}

// imapdConf authenticates users with and without a domain by sasldb alone. Its separator
// and namespace are those of the Dovecot configuration.
var imapdConf = template.Must(template.New("imapd.conf").Parse(`
configdirectory: {{.Dir}}/conf
proc_path: {{.Dir}}/conf/proc
mboxname_lockpath: {{.Dir}}/conf/lock
lmtpsocket: {{.Dir}}/conf/socket/lmtp
idlesocket: {{.Dir}}/conf/socket/idle
notifysocket: {{.Dir}}/conf/socket/notify
defaultpartition: default
partition-default: {{.Dir}}/mail
servername: {{.Name}}
admins: {{.Admin}}
{{- if .Master}}
proxyservers: {{.Master}}
{{- end}}
virtdomains: userid
defaultdomain: internal
altnamespace: yes
unixhierarchysep: yes
allowplaintext: {{if .Secured}}no{{else}}yes{{end}}
failedloginpause: 0
allowstarttls: yes
sasl_pwcheck_method: {{if .Unchecked}}saslauthd{{else}}auxprop{{end}}
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {{.Dir}}/sasldb2
sasl_mech_list: PLAIN LOGIN
tls_server_cert: {{.Dir}}/cert.pem
tls_server_key: {{.Dir}}/key.pem
# Without idled, IDLE polls for changes every second.
imapidlepoll: 1
# Syncing to disk before each response would take longer than the rest of a test.
skiplist_unsafe: yes
`))

var cyrusConf = template.Must(template.New("cyrus.conf").Parse(`
START {
  recover cmd="/usr/sbin/cyrus ctl_cyrusdb -C {{.Dir}}/imapd.conf -r"
}
SERVICES {
  imap cmd="/usr/lib/cyrus/bin/imapd -C {{.Dir}}/imapd.conf" listen="{{.Plain}}" prefork=4 maxchild=1000
  imaps cmd="/usr/lib/cyrus/bin/imapd -C {{.Dir}}/imapd.conf -s" listen="{{.TLS}}" prefork=4 maxchild=1000
}
EVENTS {
}
`))
