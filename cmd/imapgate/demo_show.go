package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"imapgate/internal/sleep"
)

const (
	// showTimeout bounds one session of the demo with its own gateway.
	showTimeout = 30 * time.Second
	// outageDuration is how long the backend is down: long enough for a person to
	// notice.
	outageDuration = time.Second
)

// signalLines sends a signal for each line until the input ends. Its goroutine is
// not waited for, because a read of a terminal cannot be interrupted: it ends with
// its input or with the process.
func signalLines(in io.Reader, lines chan<- struct{}, quit <-chan struct{}) {
	for read := bufio.NewReaderSize(in, 16); ; {
		if _, err := read.ReadSlice('\n'); errors.Is(err, bufio.ErrBufferFull) {
			continue
		} else if err != nil {
			return
		}
		select {
		case lines <- struct{}{}:
		case <-quit:
			return
		}
	}
}

// showOnEnter demonstrates the modes resume and reuse for each line of input, until
// ctx ends.
func (d *demo) showOnEnter(ctx context.Context, in io.Reader, out io.Writer) {
	lines := make(chan struct{})
	go signalLines(in, lines, ctx.Done())
	for {
		select {
		case <-ctx.Done():
			return
		case <-lines:
		}
		if err := errors.Join(d.showResume(ctx, out), d.showReuse(ctx, out)); err != nil && ctx.Err() == nil {
			fmt.Fprintln(out, "the demonstration failed:", err)
		}
	}
}

// showResume restarts west while bob's client is in IDLE. The client then receives
// the message that arrived during the restart.
func (d *demo) showResume(ctx context.Context, out io.Writer) (err error) {
	fmt.Fprint(out, "\nMode resume: bob's client is in IDLE while his backend, west, restarts.\n")
	c, err := d.dialClient(ctx, out)
	if err != nil {
		return err
	}
	defer c.Close()
	c.command("a", "LOGIN bob "+d.Password)
	c.command("b", "SELECT INBOX")
	c.send("c IDLE")
	c.readUntil("+ ")
	if c.err != nil {
		return c.err
	}
	c.printNote("west is stopped: its connections are aborted and its port is closed; a message arrives there")
	if err := d.West.stop(); err != nil {
		return err
	}
	if err := d.West.deliver("bob", "Arrived while west was down"); err != nil {
		return err
	}
	_ = sleep.For(ctx, outageDuration)
	if err := d.West.start(); err != nil {
		return err
	}
	c.printNote("west is running again; the client is still connected, and receives the new message:")
	c.readUntil("* ", " EXISTS")
	c.send("DONE")
	c.readUntil("c ")
	c.command("d", "FETCH * BODY.PEEK[HEADER.FIELDS (SUBJECT)]")
	c.command("e", "LOGOUT")
	return c.err
}

// showReuse logs carol in several times and prints the number of connections to the
// backends.
func (d *demo) showReuse(ctx context.Context, out io.Writer) error {
	const logins = 3
	fmt.Fprintf(out, "\nMode reuse: carol's webmail logs in and out %d times.\n", logins)
	before := d.East.connections.Load() + d.West.connections.Load()
	for range logins {
		c, err := d.dialClient(ctx, io.Discard)
		if err != nil {
			return err
		}
		c.command("a", "LOGIN carol "+d.Password)
		c.command("b", "LOGOUT")
		c.Close()
		if c.err != nil {
			return c.err
		}
	}
	connections := d.East.connections.Load() + d.West.connections.Load() - before
	_, err := fmt.Fprintf(out, "     OK %d times; her backend got %s.\n\n", logins, pluralize(connections, "new connection"))
	return err
}

// demoClient is a client of the gateway that prints its dialogue. After an error its
// methods do nothing.
type demoClient struct {
	*tls.Conn
	in  *bufio.Reader
	out io.Writer
	err error
}

func (d *demo) dialClient(ctx context.Context, out io.Writer) (*demoClient, error) {
	pem, err := os.ReadFile(d.filePath("cert.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	ctx, cancel := context.WithTimeout(ctx, showTimeout)
	defer cancel()
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: loopback}}
	conn, err := dialer.DialContext(ctx, "tcp", loopbackAddress(d.Ports.IMAPS))
	if err != nil {
		return nil, err
	}
	c := &demoClient{Conn: conn.(*tls.Conn), in: bufio.NewReader(conn), out: out}
	c.err = c.SetDeadline(time.Now().Add(showTimeout))
	c.readUntil("* OK")
	return c, nil
}

func (c *demoClient) printNote(text string) { fmt.Fprintln(c.out, "    ", text) }

func (c *demoClient) command(tag, text string) {
	c.send(tag + " " + text)
	c.readUntil(tag + " ")
}

func (c *demoClient) send(line string) {
	if c.err == nil {
		fmt.Fprintln(c.out, "  C:", line)
		_, c.err = io.WriteString(c, line+"\r\n")
	}
}

// readUntil reads and prints lines up to one with this prefix and suffix.
func (c *demoClient) readUntil(prefix string, suffix ...string) {
	for c.err == nil {
		var line string
		if line, c.err = c.in.ReadString('\n'); c.err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		fmt.Fprintln(c.out, "  S:", line)
		if !strings.HasPrefix(line, prefix) || !strings.HasSuffix(line, strings.Join(suffix, "")) {
			continue
		}
		if strings.HasPrefix(line, prefix+"NO ") || strings.HasPrefix(line, prefix+"BAD ") {
			c.err = errors.New(line)
		}
		return
	}
}

// tailInterval is how often the audit log is read, short enough for a person.
const tailInterval = 100 * time.Millisecond

// tailAuditLog prints the records of a file as they are written, until ctx is done; then
// the remaining ones.
func tailAuditLog(ctx context.Context, path string, to io.Writer) {
	ticker := time.NewTicker(tailInterval)
	defer ticker.Stop()
	f, err := os.Open(path)
	if err != nil {
		fmt.Fprintln(to, "cannot read the audit log:", err)
		return
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var partial string // beginning of an incomplete line
	for last := false; ; {
		chunk, err := in.ReadString('\n')
		partial += chunk
		if err == nil {
			printAuditRecord(partial, to)
			partial = ""
			continue
		}
		if last {
			return
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			last = true
		}
	}
}

func printAuditRecord(text string, to io.Writer) {
	var l auditRecord
	if json.Unmarshal([]byte(text), &l) == nil {
		fmt.Fprintln(to, recordFormat{timeLayout: time.TimeOnly, useColour: supportsColour(to)}.format(&l))
	}
}
