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

// courierd is where Debian has Courier's listener; its package is courier-imap.
const courierd = "/usr/sbin/couriertcpd"

// courierID is the user and group id that owns all mail.
const courierID = 1000

// Courier is a running mail backend without TLS.
type Courier struct {
	// Set once.
	Plain string // host:port
	dir   string
	place place
}

// StartCourier starts a mail backend with these users, each with a password, and ends
// it with the test, which is skipped where the environment names no root with Courier.
func StartCourier(t testing.TB, users map[string]string) *Courier {
	t.Helper()
	root := os.Getenv(RootVariable)
	if _, err := os.Stat(filepath.Join(root, courierd)); root == "" || err != nil {
		t.Skipf("this test needs a root with Courier, which .ci/root makes, in %s", RootVariable)
	}
	c := &Courier{place: place{root}}
	c.dir = c.place.folder(t, "courier")
	if err := c.writeUsers(users); err != nil {
		t.Fatalf("make the users of Courier: %v", err)
	}
	OnFreePorts(t, 1, func(ports []int) error {
		c.Plain = Loopback(ports[0])
		return c.start(t, ports[0])
	})
	return c
}

// writeUsers makes each user an account and a maildir.
func (c *Courier) writeUsers(users map[string]string) error {
	if err := errors.Join(os.Chmod(c.dir, 0o755), os.MkdirAll(filepath.Join(c.dir, "etc"), 0o755)); err != nil {
		return err
	}
	var table strings.Builder
	for name, password := range users {
		hash := c.place.command("/usr/sbin/userdbpw", "-md5")
		hash.Stdin = strings.NewReader(password + "\n")
		hashed, err := hash.Output()
		if err != nil {
			return fmt.Errorf("userdbpw: %w", err)
		}
		home := filepath.Join(c.dir, name)
		if err := os.Mkdir(home, 0o755); err != nil {
			return err
		}
		inside := c.place.inside(home)
		if out, err := c.place.command("/usr/bin/maildirmake.courier", inside+"/Maildir").CombinedOutput(); err != nil {
			return fmt.Errorf("maildirmake: %w: %s", err, out)
		}
		fmt.Fprintf(&table, "%s\tuid=%d|gid=%d|home=%s|mail=%s/Maildir|systempw=%s\n",
			name, courierID, courierID, inside, inside, strings.TrimSpace(string(hashed)))
		err = filepath.WalkDir(home, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, courierID, courierID))
		})
		if err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(c.dir, "etc", "userdb"), []byte(table.String()), 0o600)
}

// start runs Courier and returns when it greets. Its paths are compiled in, so it has
// /run and /etc/courier to itself, in a mount namespace of its own; and a namespace of
// processes, because its listener leaves the process group.
func (c *Courier) start(t testing.TB, port int) error {
	values := struct {
		Dir  string
		Port int
	}{c.place.inside(c.dir), port}
	var script strings.Builder
	if err := courierScript.Execute(&script, values); err != nil {
		return err
	}
	p, err := startCommand(t, exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", c.place.root, "/bin/sh", "-euc", script.String()))
	if err != nil {
		return err
	}
	if err = p.WaitUntil("greet", c.greets); err != nil {
		p.Kill()
	}
	return err
}

func (c *Courier) greets() bool {
	conn, err := net.DialTimeout("tcp", c.Plain, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()                                  // nothing was written
	_ = conn.SetReadDeadline(time.Now().Add(startTime)) // else the read fails
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
