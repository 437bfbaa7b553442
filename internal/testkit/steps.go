package testkit

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// Steps is a script of fixed steps for one connection. A step is a line:
//
//	> TEXT   sends TEXT and CRLF; {X} is the tag of the command that began with X
//	>> TEXT  sends TEXT alone
//	< NAME   reads a command, or a line that NAME stands in
//	tls      continues under TLS
//	fin      closes its side
//	rst      resets the connection
//	hang     sends nothing until the other side closes
//
// After its last step it does the same as hang.
type Steps struct {
	// Set once.
	Lines []string
	TLS   *tls.Config // for the step tls

	// Owned by Run.
	Plaintext bytes.Buffer // received without TLS
	Encrypted bytes.Buffer // received under TLS
	Err       error        // the connection did not follow the script
	tags      []string     // names and values of tags

	server *ScriptedIMAP // of Start
}

// Start starts a server that runs the steps, and returns its address.
func (s *Steps) Start(t testing.TB) (address string) {
	t.Helper()
	s.server = StartIMAP(t, s.Run)
	return s.server.Addr()
}

// Wait waits for the end of the connection.
func (s *Steps) Wait() { s.server.Wait() }

// Run is a script for a ScriptedIMAP with one connection. It refuses others.
func (s *Steps) Run(c *Conn) {
	c.Server.Refuse()
	c.R = bufio.NewReader(io.TeeReader(c.Conn, &s.Plaintext))
	for _, step := range s.Lines {
		if err := s.run(c, step); err != nil {
			s.Err = fmt.Errorf("step %q: %w", step, err)
			break
		}
	}
	_, _ = io.Copy(io.Discard, c.R)
	_ = c.tcp.Close() // without a close_notify, which the peer may not expect
}

func (s *Steps) run(c *Conn, step string) error {
	verb, text, _ := strings.Cut(step, " ")
	switch verb {
	case ">":
		return c.Send(strings.NewReplacer(s.tags...).Replace(text))
	case ">>":
		_, err := io.WriteString(c, strings.NewReplacer(s.tags...).Replace(text))
		return err
	case "<":
		return s.readCommand(c, text)
	case "tls":
		err := c.StartTLS(s.TLS)
		c.R = bufio.NewReader(io.TeeReader(c.Conn, &s.Encrypted))
		return err
	case "fin":
		return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
	case "rst":
		_ = c.tcp.(*net.TCPConn).SetLinger(0)
		return c.tcp.Close()
	case "hang":
		_, err := io.Copy(io.Discard, c.R)
		return err
	}
	return errors.New("no such verb")
}

func (s *Steps) readCommand(c *Conn, name string) error {
	line, err := c.R.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.Contains(line, name) {
		return fmt.Errorf("received %q", line)
	}
	if tag, command, _ := strings.Cut(line, " "); name != "" && strings.HasPrefix(command, name) {
		s.tags = append(s.tags, "{"+tag[:1]+"}", tag)
	}
	return nil
}
