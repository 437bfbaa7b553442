//go:build unix

package testbed

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"
)

// couriertcpdPath is the path of Courier's listener in Debian's package courier-imap.
const couriertcpdPath = "/usr/sbin/couriertcpd"

// courierUID is the user and group id that owns all mail.
const courierUID = 1000

// Courier is a running mail backend without TLS.
type Courier struct {
	// Set once.
	Plain   string // host:port
	dir     string
	sysroot sysroot
}

// StartCourier starts a mail backend with these users and their passwords, and stops it
// when the test ends. It skips the test if RootEnv names no root with Courier.
func StartCourier(t testing.TB, users map[string]string) *Courier {
	t.Helper()
	root := os.Getenv(RootEnv)
	if _, err := os.Stat(filepath.Join(root, couriertcpdPath)); root == "" || err != nil {
		t.Skipf("this test needs a root with Courier, which .ci/root makes, in %s", RootEnv)
	}
	c := &Courier{sysroot: sysroot{root}}
	c.dir = c.sysroot.makeDir(t, "courier")
	if err := c.writeUsers(users); err != nil {
		t.Fatalf("make the users of Courier: %v", err)
	}
	OnFreePorts(t, 1, func(ports []int) error {
		c.Plain = Loopback(ports[0])
		return c.start(t, ports[0])
	})
	return c
}

// writeUsers creates an account and a maildir for each user.
func (c *Courier) writeUsers(users map[string]string) error {
	if err := errors.Join(os.Chmod(c.dir, 0o755), os.MkdirAll(filepath.Join(c.dir, "etc"), 0o755)); err != nil {
		return err
	}
	var table strings.Builder
	for name, password := range users {
		hashCmd := c.sysroot.command("/usr/sbin/userdbpw", "-md5")
		hashCmd.Stdin = strings.NewReader(password + "\n")
		digest, err := hashCmd.Output()
		if err != nil {
			return fmt.Errorf("userdbpw: %w", err)
		}
		home := filepath.Join(c.dir, name)
		if err := os.Mkdir(home, 0o755); err != nil {
			return err
		}
		innerHome := c.sysroot.innerPath(home)
		if out, err := c.sysroot.command("/usr/bin/maildirmake.courier", innerHome+"/Maildir").CombinedOutput(); err != nil {
			return fmt.Errorf("maildirmake: %w: %s", err, out)
		}
		fmt.Fprintf(&table, "%s\tuid=%d|gid=%d|home=%s|mail=%s/Maildir|systempw=%s\n",
			name, courierUID, courierUID, innerHome, innerHome, strings.TrimSpace(string(digest)))
		err = filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, courierUID, courierUID))
		})
		if err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(c.dir, "etc", "userdb"), []byte(table.String()), 0o600)
}

// start runs Courier and returns when it sends a greeting. Its paths are compiled in, so
// a mount namespace gives it its own /run and /etc/courier. It also needs a PID
// namespace, because its listener leaves the process group.
func (c *Courier) start(t testing.TB, port int) error {
	values := struct {
		Dir  string
		Port int
	}{c.sysroot.innerPath(c.dir), port}
	var script strings.Builder
	if err := courierScript.Execute(&script, values); err != nil {
		return err
	}
	p, err := startCommand(t, exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", c.sysroot.root, "/bin/sh", "-euc", script.String()))
	if err != nil {
		return err
	}
	if err = p.WaitUntil("greet", c.isReady); err != nil {
		p.Kill()
	}
	return err
}

func (c *Courier) isReady() bool {
	conn, err := net.DialTimeout("tcp", c.Plain, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()                                     // nothing was written
	_ = conn.SetReadDeadline(time.Now().Add(startTimeout)) // else the read fails
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.HasPrefix(line, "* OK ")
}

var courierScript = template.Must(template.New("courier").Parse(`
mount -t tmpfs none /run
mount --bind {{.Dir}}/etc /etc/courier
mkdir -p /run/courier/authdaemon
echo 'authmodulelist="authuserdb"' >/etc/courier/authdaemonrc
/usr/sbin/makeuserdb
export authmodulelist=authuserdb authmodulelistorig=authuserdb daemons=5 authdaemonvar=/run/courier/authdaemon
/usr/lib/courier/courier-authlib/authdaemond &
until [ -S /run/courier/authdaemon/socket ]; do sleep 0.1; done
export IMAP_CAPABILITY="IMAP4rev1 UIDPLUS CHILDREN NAMESPACE THREAD=ORDEREDSUBJECT THREAD=REFERENCES SORT QUOTA IDLE"
export IMAP_KEYWORDS=1 IMAP_ACL=1 IMAP_IDLE_TIMEOUT=60 IMAP_USELOCKS=1 IMAP_UMASK=022 IMAP_STARTTLS=NO IMAP_TLS_REQUIRED=0
/usr/sbin/couriertcpd -address=127.0.0.1 -maxprocs=500 -maxperip=500 -nodnslookup -noidentlookup {{.Port}} \
	/usr/lib/courier/courier/imaplogin /usr/bin/imapd Maildir &
wait
`))
