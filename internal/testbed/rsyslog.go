//go:build unix

package testbed

import (
	"fmt"
	"imapgate/internal/testkit"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// StartRsyslog starts rsyslog with a local socket in its default form and stops it when
// the test ends. It writes each message to file as a line in the form of template.
func StartRsyslog(t testing.TB, template string) (socket, file string) {
	t.Helper()
	dir := makeDir(t, "rs")
	socket, file = filepath.Join(dir, "log"), filepath.Join(dir, "messages")
	conf := filepath.Join(dir, "rsyslog.conf")
	text := fmt.Sprintf(`module(load="imuxsock" SysSock.Name="%s")
template(name="line" type="string" string="%s\n")
action(type="omfile" file="%s" template="line")
`, socket, template, file)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t, FindProgram(t, "rsyslogd", "rsyslog"), "-n", "-f", conf, "-i", filepath.Join(dir, "pid")); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "rsyslog to listen", func() bool {
		conn, err := net.Dial("unixgram", socket)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	return socket, file
}
