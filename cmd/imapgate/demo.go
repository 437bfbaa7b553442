package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"text/template"

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/internal/gateway"
	"imapgate/tlsconf"
)

const loopback = "127.0.0.1"

// demoPorts are the preferred ports of the demo. For 0, or a port in use, the kernel
// chooses one.
type demoPorts struct{ IMAPS, IMAP, Admin, Redis int }

// demo is the environment of the gateway of `imapgate demo`. The gateway itself is
// the real one, with a real configuration file.
type demo struct {
	// Set once, by newDemo.
	Dir      string // cert.pem, key.pem, imapgate.yaml, audit.log
	Ports    demoPorts
	East     *demoBackend
	West     *demoBackend
	redis    *miniredis.Miniredis
	Command  string // the command line of this program on this machine
	Folder   string // the working directory for Command; "" for any
	Password string
}

func newDemo() *cobra.Command {
	ports := demoPorts{IMAPS: 1993, IMAP: 1143, Admin: 9143, Redis: 16379}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a demonstration in one process: backends, Redis, certificate, gateway",
		Long: `Run a gateway with two mail servers, a Redis and a certificate, all in this process
and on loopback, and print what to try. It needs no installation and leaves nothing behind
when it ends.

The mail servers and Redis are small ones for the demonstration; the gateway is the real one.`,
		Example: "  imapgate demo\n  imapgate demo --imaps-port 0   # a free port",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepareProcess(); err != nil {
				return err
			}
			return runDemo(cmd.Context(), ports, console{cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()})
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&ports.IMAPS, "imaps-port", ports.IMAPS, "port for IMAP over TLS; a free one if it is in use")
	flags.IntVar(&ports.IMAP, "imap-port", ports.IMAP, "port for IMAP with STARTTLS")
	flags.IntVar(&ports.Admin, "admin-port", ports.Admin, "port of the admin address")
	flags.IntVar(&ports.Redis, "redis-port", ports.Redis, "port of Redis")
	return cmd
}

// console has the input and output of a demo.
type console struct {
	in         io.Reader // each line starts the demonstration of the modes resume and reuse
	out, logTo io.Writer
}

// runDemo runs the demo until ctx is done or a signal ends it.
func runDemo(ctx context.Context, ports demoPorts, c console) (err error) {
	signals := notifySignals()
	defer signal.Stop(signals)
	allowBackground()
	d, err := startDemo(ports)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	cfg, err := config.Load(d.filePath("imapgate.yaml"))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	log, err := newLog(cfg.Log, c.logTo)
	if err != nil {
		return err
	}
	setRedisLogger(log)
	g, err := gateway.Open(cfg, gateway.Options{Log: log, Version: readBuildInfo().Version})
	if err != nil {
		return err
	}
	tailCtx, stopTail := context.WithCancel(context.WithoutCancel(ctx))
	var tail sync.WaitGroup
	defer func() {
		g.Close() // writes the last record of the log
		stopTail()
		tail.Wait()
	}()
	if err := d.printIntroduction(c.out); err != nil {
		return err
	}
	tail.Go(func() { tailAuditLog(tailCtx, d.filePath("audit.log"), c.out) })
	showCtx, stop := context.WithCancel(ctx)
	var showGroup sync.WaitGroup
	defer showGroup.Wait()
	defer stop()
	showGroup.Go(func() { d.showOnEnter(showCtx, c.in, c.out) })
	return runUntilSignal(ctx, g, signals)
}

// startDemo starts everything that the gateway needs.
func startDemo(wanted demoPorts) (_ *demo, err error) {
	d := &demo{Password: "demo", redis: miniredis.NewMiniRedis()}
	d.Command, d.Folder = ownCommand()
	defer func() {
		if err != nil {
			_ = d.stop()
		}
	}()
	if d.Dir, err = os.MkdirTemp("", "imapgate-demo-"); err != nil {
		return nil, err
	}
	if d.East, err = startBackend("east", d.Password); err != nil {
		return nil, err
	}
	if d.West, err = startBackend("west", d.Password); err != nil {
		return nil, err
	}
	if err := d.choosePorts(wanted); err != nil {
		return nil, err
	}
	if err := d.redis.StartAddr(loopbackAddress(d.Ports.Redis)); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	d.writeRoutes()
	return d, errors.Join(d.writeCertificate(), d.writeConfig())
}

// stop stops what startDemo started; it may be called on a partly started demo.
func (d *demo) stop() error {
	var errs []error
	for _, b := range []*demoBackend{d.East, d.West} {
		if b != nil {
			errs = append(errs, b.stop())
		}
	}
	d.redis.Close()
	if d.Dir != "" {
		errs = append(errs, os.RemoveAll(d.Dir))
	}
	return errors.Join(errs...)
}

func (d *demo) filePath(name string) string { return filepath.Join(d.Dir, name) }

// choosePorts chooses the wanted ports if they are free. It closes them again before
// they are used; if another process takes one in between, the demo fails with an
// error.
func (d *demo) choosePorts(wanted demoPorts) error {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	reserve := func(port int, into *int) error {
		l, err := net.Listen("tcp", loopbackAddress(port))
		if err != nil {
			if l, err = net.Listen("tcp", loopbackAddress(0)); err != nil {
				return err
			}
		}
		listeners = append(listeners, l)
		*into = l.Addr().(*net.TCPAddr).Port
		return nil
	}
	return errors.Join(reserve(wanted.IMAPS, &d.Ports.IMAPS), reserve(wanted.IMAP, &d.Ports.IMAP),
		reserve(wanted.Admin, &d.Ports.Admin), reserve(wanted.Redis, &d.Ports.Redis))
}

func (d *demo) writeRoutes() {
	for _, record := range [][]string{
		{"imapgate:user:alice@example.org", "backend", "east"},
		{"imapgate:user:bob@example.org", "backend", "west", "mode", "resume"},
		{"imapgate:default", "backend", "east", "mode", "reuse"},
	} {
		d.redis.HSet(record[0], record[1:]...)
	}
}

func (d *demo) writeCertificate() error {
	cert, key, err := tlsconf.SelfSignedPEM("localhost", loopback)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(d.filePath("cert.pem"), cert, 0o600), os.WriteFile(d.filePath("key.pem"), key, 0o600))
}

// writeConfig writes the gateway's configuration. The in-memory Redis does not
// announce changes, so a short ttl makes the gateway notice them. The backends are
// on loopback in this process, and do not support ID.
func (d *demo) writeConfig() error {
	text := fmt.Sprintf(`# Made by imapgate demo.
listeners:
  - {name: imaps, address: "%[2]s", tls: implicit}
  - {name: imap, address: "%[3]s", tls: starttls}
tls:
  certificates: [{cert: "%[1]s/cert.pem", key: "%[1]s/key.pem"}]
redis: {addresses: ["%[4]s"]}
auth: {methods: [passthrough], default_domain: example.org}
routing: {source: redis, cache: {ttl: 1s, negative: 1s}}
backends:
  east: {address: "%[5]s", tls: none, forward: none, mux: {credential_cache: true}}
  west: {address: "%[6]s", tls: none, forward: none}
limits: {drain_timeout: 1s}
audit: {path: "%[1]s/audit.log"}
log: {level: error, format: console}
admin: {address: "%[7]s"}
`, d.Dir, loopbackAddress(d.Ports.IMAPS), loopbackAddress(d.Ports.IMAP), loopbackAddress(d.Ports.Redis), d.East.address(), d.West.address(), loopbackAddress(d.Ports.Admin))
	return os.WriteFile(d.filePath("imapgate.yaml"), []byte(text), 0o600)
}

func loopbackAddress(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

// ownCommand returns the command line of this program and the folder in which it
// works; "" for any.
func ownCommand() (command, folder string) {
	path, err := os.Executable()
	workDir, workDirErr := os.Getwd()
	if err != nil || workDirErr != nil {
		return "imapgate", ""
	}
	return resolveCommand(path, os.Args[0], workDir)
}

// resolveCommand is ownCommand for a program that was started as typed in workDir.
// go run deletes its binary when it ends, so the command is go run again.
func resolveCommand(path, typed, workDir string) (command, folder string) {
	switch {
	case strings.Contains(filepath.ToSlash(path), "/go-build"):
		return "go run ./cmd/imapgate", moduleRoot(workDir)
	case filepath.Base(typed) == typed, filepath.IsAbs(typed): // the former is in PATH
		return quoteShellWord(typed), ""
	}
	return quoteShellWord(filepath.Join(workDir, typed)), ""
}

// quoteShellWord quotes s unless a POSIX shell reads it as one plain word.
func quoteShellWord(s string) string {
	special := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%=", r))
	}
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// moduleRoot returns the root of the Go module that contains folder, or folder
// itself.
func moduleRoot(folder string) string {
	for dir := folder; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return folder
		}
	}
}

// introductionText is the first output of the demo.
const introductionText = `imapgate demo: a gateway, two mail servers (east and west), Redis and a certificate.

  IMAP over TLS   {{.IMAPS}}
  IMAP, STARTTLS  {{.IMAP}}
  admin           http://{{.Admin}}/metrics
  Redis           {{.Redis}}
  files           {{.Dir}} (removed at the end)

  user               password  mail is on                                mode
  alice@example.org  {{.Password}}      east, by imapgate:user:alice@example.org  splice: bytes are copied
  bob@example.org    {{.Password}}      west, by imapgate:user:bob@example.org    resume: outlives a backend's restart
  carol@example.org  {{.Password}}      east, by imapgate:default                 reuse: logins share connections

Press Enter in this window to see the modes: west restarts while a client of bob is in IDLE, and
carol logs in several times. Your own sessions as bob survive the restart, too (see "Speak IMAP").

Run the commands below in another window{{if .Folder}}, in the folder {{.Folder}}{{end}}.

Read a mail:
  curl --cacert {{.Cert}} -u alice@example.org:{{.Password}} 'imaps://{{.IMAPS}}/INBOX;MAILINDEX=1'

Speak IMAP (then type: a LOGIN bob {{.Password}}, b SELECT INBOX, c IDLE; press Enter in the first window; DONE, d LOGOUT):
  openssl s_client -quiet -crlf -CAfile {{.Cert}} -connect {{.IMAPS}}
  openssl s_client -quiet -crlf -CAfile {{.Cert}} -connect {{.IMAP}} -starttls imap

Use a mail client (it will warn about the certificate):
  server {{.Host}}, port {{.Ports.IMAPS}}, SSL/TLS, normal password, user name alice@example.org, password {{.Password}}

Send alice's next login to west (either command does it), and read mail again: it is another message. This
Redis cannot announce changes as a real one does, so the gateway here queries it again after a second.
No mail is copied, and open sessions stay on east; the second command prints how many.
  redis-cli -p {{.Ports.Redis}} HSET imapgate:user:alice@example.org backend west
  {{.Command}} route set alice backend=west -c {{.Config}}

Show her route and the reason ("changed to" is a change that the gateway has not noticed yet):
  {{.Command}} route explain alice -c {{.Config}}

Send all users without their own record, such as carol, to west:
  {{.Command}} route set --default backend=west -c {{.Config}}

Enter shows the modes, Ctrl-C ends the demo. Records of the audit log ({{.Dir}}/audit.log):

`

func (d *demo) printIntroduction(to io.Writer) error {
	t, err := template.New("introduction").Parse(introductionText)
	if err != nil {
		return fmt.Errorf("introduction: %w", err)
	}
	return t.Execute(to, struct {
		*demo
		Host, IMAPS, IMAP, Admin, Redis string
		Cert, Config                    string // quoted for a shell
	}{d, loopback, loopbackAddress(d.Ports.IMAPS), loopbackAddress(d.Ports.IMAP), loopbackAddress(d.Ports.Admin), loopbackAddress(d.Ports.Redis),
		quoteShellWord(filepath.Join(d.Dir, "cert.pem")), quoteShellWord(filepath.Join(d.Dir, "imapgate.yaml"))})
}
