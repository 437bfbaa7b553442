package audit

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"imapgate/tlsconf"
)

// maxFrames bounds what goes to a syslog server in one write.
const maxFrames = 64 << 10

// refusalWait is how long a new TLS connection is listened to before it is used.
const refusalWait = 250 * time.Millisecond

// facilities of RFC 5424 §6.2.1, by their usual names. Constant.
var facilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

// syslog is a sink: a server that speaks RFC 5424, over a local socket, TCP
// (RFC 6587 with octet counting) or TLS (RFC 5425). None of these has an answer:
// what the kernel had taken when a connection broke is lost without notice.
type syslog struct {
	// Set once.
	network string // unix, tcp, tls
	address string
	tls     func() *tls.Config
	begin   []byte // of a header: <PRI>VERSION SP
	middle  []byte // of a header, between the time and MSGID

	// Owned by the outlet's run.
	conn    net.Conn // nil: to be dialed
	framed  bool     // frames have their length before them
	frames  []byte
	hearing sync.WaitGroup
}

func newSyslog(cfg SinkConfig) (*syslog, error) {
	network, address, _ := strings.Cut(cfg.Address, "://")
	if !slices.Contains([]string{"unix", "tcp", "tls"}, network) || address == "" {
		return nil, fmt.Errorf("syslog address %q is not unix:///path, tcp://host:port or tls://host:port", cfg.Address)
	}
	if network == "tls" && cfg.TLS == nil {
		return nil, fmt.Errorf("syslog address %q needs TLS settings", cfg.Address)
	}
	name := cfg.Facility
	if name == "" {
		name = "authpriv"
	}
	facility := slices.Index(facilities, name)
	if facility < 0 {
		return nil, fmt.Errorf("there is no syslog facility %q", name)
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-" // NILVALUE
	}
	const informational = 6
	return &syslog{network: network, address: address, tls: cfg.TLS,
		begin:  fmt.Appendf(nil, "<%d>1 ", facility*8+informational),
		middle: fmt.Appendf(nil, " %s imapgate %d ", host, os.Getpid())}, nil
}

// message appends a record as a syslog message. Its time and its event, the
// MSGID, stand at its beginning. There is no BOM, which would make it no JSON:
// RFC 5424 §6.4 calls that MSG-ANY.
func (s *syslog) message(dst, record []byte) []byte {
	_, rest, _ := bytes.Cut(record, []byte(`"time":"`))
	stamp, rest, _ := bytes.Cut(rest, []byte(`","event":"`))
	event, _, _ := bytes.Cut(rest, []byte{'"'})
	dst = append(append(append(dst, s.begin...), stamp...), s.middle...)
	dst = append(append(dst, event...), " - "...)
	return append(dst, record...)
}

// write tries a second time when a connection turns out to be over: servers are
// started anew.
func (s *syslog) write(lines []byte) (int, error) {
	fresh := s.conn == nil
	taken, err := s.try(lines)
	if err == nil || fresh {
		return taken, err
	}
	more, err := s.try(lines[taken:])
	return taken + more, err
}

func (s *syslog) try(lines []byte) (int, error) {
	if err := s.connect(); err != nil {
		return 0, err
	}
	if s.framed {
		return s.writeFrames(lines)
	}
	taken := 0
	for taken < len(lines) {
		end := bytes.IndexByte(lines[taken:], '\n')
		s.frames = s.message(s.frames[:0], lines[taken:taken+end])
		_ = s.conn.SetWriteDeadline(time.Now().Add(sinkWait))
		if _, err := s.conn.Write(s.frames); err != nil {
			s.drop()
			return taken, err
		}
		taken += end + 1
	}
	return taken, nil
}

// writeFrames writes some of the lines with their lengths. After a failure the
// record that was cut begins anew, on a new connection.
func (s *syslog) writeFrames(lines []byte) (int, error) {
	s.frames = s.frames[:0]
	var ends []int // of the frames
	var one []byte
	for rest := lines; len(rest) > 0 && len(s.frames) < maxFrames; {
		end := bytes.IndexByte(rest, '\n')
		one = s.message(one[:0], rest[:end])
		s.frames = append(strconv.AppendInt(s.frames, int64(len(one)), 10), ' ')
		s.frames = append(s.frames, one...)
		ends = append(ends, len(s.frames))
		rest = rest[end+1:]
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(sinkWait))
	n, err := s.conn.Write(s.frames)
	whole := 0
	for whole < len(ends) && ends[whole] <= n {
		whole++
	}
	if err != nil {
		s.drop()
	}
	return firstLines(lines, whole), err
}

// connect dials the server when there is no connection. A local socket is one of
// datagrams or, failing that, a stream.
func (s *syslog) connect() error {
	if s.conn != nil {
		return nil
	}
	d := &net.Dialer{Timeout: sinkWait}
	var conn net.Conn
	var err error
	s.framed = true
	switch s.network {
	case "unix":
		conn, err = d.Dial("unixgram", s.address)
		if s.framed = err != nil; s.framed {
			conn, err = d.Dial("unix", s.address)
		}
	case "tls":
		if conn, err = tlsconf.Dial(context.Background(), d, s.address, s.tls); err == nil {
			err = awaitRefusal(conn)
		}
	default:
		conn, err = d.Dial("tcp", s.address)
	}
	if err != nil {
		return err
	}
	s.conn = conn
	if s.framed {
		s.hearing.Go(func() { hear(conn) })
	}
	return nil
}

// awaitRefusal gives a server the time to refuse our certificate, or that there is none: with
// TLS 1.3 it does so behind the handshake, when what is written is lost already. One that
// accepts us says nothing. After an error conn is closed.
func awaitRefusal(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(refusalWait))
	_, err := conn.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return conn.SetReadDeadline(time.Time{})
	}
	_ = conn.Close()
	return err
}

// hear is a goroutine that ends with its connection. A server says nothing; when
// it hangs up, the next write must fail instead of going to nobody.
func hear(conn net.Conn) {
	var nothing [64]byte
	for {
		if _, err := conn.Read(nothing[:]); err != nil {
			_ = conn.Close()
			return
		}
	}
}

// drop closes the connection; the next write makes another.
func (s *syslog) drop() {
	_ = s.conn.Close()
	s.hearing.Wait()
	s.conn = nil
}

func (s *syslog) tend() error { return nil }

func (s *syslog) close() error {
	if s.conn != nil {
		s.drop()
	}
	return nil
}
