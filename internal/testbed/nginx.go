//go:build unix

package testbed

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// nginxMailModule is the path of the module in Debian's package libnginx-mod-mail.
const nginxMailModule = "/usr/lib/nginx/modules/ngx_mail_module.so"

// StartNginx starts nginx as a mail proxy and stops it when the test ends. mailBlock
// writes the mail block for n free addresses.
func StartNginx(t testing.TB, n int, mailBlock func(addresses []string) string) (addresses []string) {
	t.Helper()
	program := FindProgram(t, "nginx", "nginx")
	if _, err := os.Stat(nginxMailModule); err != nil {
		t.Fatalf("this test needs nginx's mail module: install it with apt-get install libnginx-mod-mail (%v)", err)
	}
	dir := makeDir(t, "ng")
	conf := filepath.Join(dir, "nginx.conf")
	OnFreePorts(t, n, func(ports []int) error {
		addresses = nil
		for _, p := range ports {
			addresses = append(addresses, Loopback(p))
		}
		text := fmt.Sprintf("load_module %s;\ndaemon off;\nmaster_process off;\npid %s/pid;\nerror_log stderr info;\nevents { worker_connections 256; }\nmail {\n%s\n}\n",
			nginxMailModule, dir, mailBlock(addresses))
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return fmt.Errorf("write nginx's configuration: %w", err)
		}
		p, err := Start(t, program, "-p", dir, "-e", "stderr", "-c", conf)
		if err != nil {
			return err
		}
		for _, address := range addresses {
			if err = p.WaitPort(address); err != nil {
				break
			}
		}
		if err != nil && strings.Contains(p.Output(), "Address already in use") {
			p.Kill()
			return ErrPortTaken
		}
		return err
	})
	return addresses
}
