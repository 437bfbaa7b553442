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

	"github.com/alicebob/miniredis/v2"
	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/tlsconf"
)

const loopback = "127.0.0.1"

// demoPorts are where the demo would like to listen. 0, or a port that is taken,
// becomes one that the kernel chooses.
type demoPorts struct{ IMAPS, IMAP, Admin, Redis int }

// demo is everything around the gateway of `imapgate demo`. The gateway itself
// is the real one, run by a real configuration file.
type demo struct {
	// Set once, by newDemo.
	Dir      string // cert.pem, key.pem, imapgate.yaml, audit.log
	Ports    demoPorts
	East     *demoBackend
	West     *demoBackend
	redis    *miniredis.Miniredis
	Command  string // how this program is called on this machine
	Folder   string // where that is typed; "" for anywhere
	Password string
}

func newDemo() *cobra.Command {
	ports := demoPorts{IMAPS: 1993, IMAP: 1143, Admin: 9143, Redis: 16379}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run everything in one process: backends, Redis, certificate, gateway",
		Long: `Run a gateway with two mail servers, a Redis and a certificate, all in this process
and on loopback, and print what to try. Nothing needs to be installed, and nothing is
left when it ends.

The mail servers and Redis are small ones for a demonstration; the gateway is the real one.`,
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
	flags.IntVar(&ports.IMAPS, "imaps-port", ports.IMAPS, "port for IMAP over TLS; when it is taken, a free one")
	flags.IntVar(&ports.IMAP, "imap-port", ports.IMAP, "port for IMAP with STARTTLS")
	flags.IntVar(&ports.Admin, "admin-port", ports.Admin, "port of the admin address")
	flags.IntVar(&ports.Redis, "redis-port", ports.Redis, "port of Redis")
	return cmd
}

// console is where a demo is watched.
type console struct {
	in         io.Reader // a line of it shows the modes resume and reuse
	out, logTo io.Writer
}

// runDemo runs the demo until ctx is done or a signal ends it.
func runDemo(ctx context.Context, ports demoPorts, c console) (err error) {
	signals := hearSignals()
	defer signal.Stop(signals)
	allowBackground()
	d, err := startDemo(ports)
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer func() { err = errors.Join(err, d.close()) }()
	cfg, err := config.Load(d.file("imapgate.yaml"))
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	log, err := newLog(cfg.Log, c.logTo)
	if err != nil {
		return err
	}
	quietRedis(log)
	g, err := open(cfg, log)
	if err != nil {
		return err
	}
	var shown *tail
	defer func() {
		g.close()
		if shown != nil { // after the log has its last line
			shown.stop()
		}
	}()
	if err := g.listen(); err != nil {
		return err
	}
	if err := d.introduce(c.out); err != nil {
		return err
	}
	shown = startTail(d.file("audit.log"), c.out)
	showing, stop := context.WithCancel(ctx)
	var shows sync.WaitGroup
	defer shows.Wait()
	defer stop()
	shows.Go(func() { d.showOnEnter(showing, c.in, c.out) })
	return g.obey(ctx, signals)
}

// startDemo starts what the gateway needs around it.
func startDemo(wanted demoPorts) (_ *demo, err error) {
	d := &demo{Password: "demo", redis: miniredis.NewMiniRedis()}
	d.Command, d.Folder = thisCommand()
	defer func() {
		if err != nil {
			_ = d.close()
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
	if err := d.redis.StartAddr(at(d.Ports.Redis)); err != nil {
		return nil, fmt.Errorf("redis: %w", err)
	}
	d.writeRoutes()
	return d, errors.Join(d.writeCertificate(), d.writeConfig())
}

// close ends what startDemo started; it may be called on a half-started demo.
func (d *demo) close() error {
	var errs []error
	for _, b := range []*demoBackend{d.East, d.West} {
		if b != nil {
			errs = append(errs, b.close())
		}
	}
	d.redis.Close()
	if d.Dir != "" {
		errs = append(errs, os.RemoveAll(d.Dir))
	}
	return errors.Join(errs...)
}

func (d *demo) file(name string) string { return filepath.Join(d.Dir, name) }

// choosePorts takes the wanted ports where they are free. A port is let go again
// before it is used; that somebody takes it in between is an error, not a danger.
func (d *demo) choosePorts(wanted demoPorts) error {
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	take := func(port int, into *int) error {
		l, err := net.Listen("tcp", at(port))
		if err != nil {
			if l, err = net.Listen("tcp", at(0)); err != nil {
				return err
			}
		}
		held = append(held, l)
		*into = l.Addr().(*net.TCPAddr).Port
		return nil
	}
	return errors.Join(take(wanted.IMAPS, &d.Ports.IMAPS), take(wanted.IMAP, &d.Ports.IMAP),
		take(wanted.Admin, &d.Ports.Admin), take(wanted.Redis, &d.Ports.Redis))
}

// writeRoutes puts into Redis what an operator would.
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
	return errors.Join(os.WriteFile(d.file("cert.pem"), cert, 0o600), os.WriteFile(d.file("key.pem"), key, 0o600))
}

// writeConfig writes the file a gateway would be run by. The in-memory Redis
// cannot say when a record changes, so a changed record is noticed by a short ttl.
// The backends are on loopback in this process, and speak no ID.
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
`, d.Dir, at(d.Ports.IMAPS), at(d.Ports.IMAP), at(d.Ports.Redis), d.East.address(), d.West.address(), at(d.Ports.Admin))
	return os.WriteFile(d.file("imapgate.yaml"), []byte(text), 0o600)
}

// at is a port on loopback.
func at(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

// thisCommand is what a user types to run this very program, and in which folder; "" for
// any.
func thisCommand() (command, folder string) {
	path, err := os.Executable()
	here, lost := os.Getwd()
	if err != nil || lost != nil {
		return "imapgate", ""
	}
	return commandOf(path, os.Args[0], here)
}

// commandOf is thisCommand for a program that was started as typed in the folder here.
// What go run has made is deleted when it ends, so it is made again.
func commandOf(path, typed, here string) (command, folder string) {
	switch {
	case strings.Contains(filepath.ToSlash(path), "/go-build"):
		return "go run ./cmd/imapgate", module(here)
	case filepath.Base(typed) == typed, filepath.IsAbs(typed): // the former is found in PATH
		return shellWord(typed), ""
	}
	return shellWord(filepath.Join(here, typed)), ""
}

// shellWord quotes what a POSIX shell would not take for one plain word.
func shellWord(s string) string {
	special := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:@%=", r))
	}
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// module is the folder of the Go module that a folder is in, or that folder.
func module(folder string) string {
	for at := folder; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at
		}
		if at == filepath.Dir(at) {
			return folder
		}
	}
}
