package audit

import (
	"bytes"
	"cmp"
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
	"syscall"
	"time"

	"imapgate/tlsconf"
)

// maxFrameBytes bounds the size of one write to a syslog server.
const maxFrameBytes = 64 << 10

// refusalTimeout is how long a new TLS connection is read before it is used.
const refusalTimeout = time.Second

// facilities has the facilities of RFC 5424 §6.2.1, by their usual names. Constant.
var facilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

// Formats of syslog messages.
const (
	RFC3164 = "rfc3164" // as syslog(3) writes it, and local servers expect it
	RFC5424 = "rfc5424"
)

// maxLocalMessage is the size to which a message is cut if a local socket refuses
// the whole (RFC 3164 §4.1). Linux accepts a whole record.
const maxLocalMessage = 1024

// syslogSink is a sink: a server that speaks RFC 3164 or RFC 5424, over a local
// socket, TCP (RFC 6587) or TLS (RFC 5425). None of these acknowledges messages:
// data that the kernel accepted before a connection broke is lost without notice.
type syslogSink struct {
	// Set once.
	network   string // unix, tcp, tls
	address   string
	format    string // RFC3164 or RFC5424
	tls       func() *tls.Config
	prefix    []byte // start of a header: <PRI>, in RFC 5424 with VERSION SP
	afterTime []byte // rest of a header: between the time and MSGID, in RFC 3164 the message

	// Owned by the sink writer's run.
	conn     net.Conn // nil: not connected
	isStream bool     // conn is a stream
	frames   []byte
	reader   sync.WaitGroup
}

func newSyslog(cfg SinkSettings) (*syslogSink, error) {
	network, address, _ := strings.Cut(cfg.Address, "://")
	if !slices.Contains([]string{"unix", "tcp", "tls"}, network) || address == "" {
		return nil, fmt.Errorf("syslog address %q is not unix:///path, tcp://host:port or tls://host:port", cfg.Address)
	}
	if network == "tls" && cfg.TLS == nil {
		return nil, fmt.Errorf("syslog address %q needs TLS settings", cfg.Address)
	}
	facility := slices.Index(facilities, cfg.Facility)
	if facility < 0 {
		return nil, fmt.Errorf("unknown syslog facility %q", cfg.Facility)
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-" // NILVALUE
	}
	defaultFormat := RFC5424
	if network == "unix" {
		defaultFormat = RFC3164
	}
	s := &syslogSink{network: network, address: address, format: cmp.Or(cfg.Format, defaultFormat), tls: cfg.TLS}
	const informational = 6
	switch s.format {
	case RFC3164:
		from := "" // a local socket has no HOSTNAME: servers know their own
		if network != "unix" {
			host, _, _ = strings.Cut(host, ".") // RFC 3164 §4.1.2: without the domain
			from = " " + host
		}
		s.prefix = fmt.Appendf(nil, "<%d>", facility*8+informational)
		s.afterTime = fmt.Appendf(nil, "%s imapgate[%d]: ", from, os.Getpid())
	case RFC5424:
		s.prefix = fmt.Appendf(nil, "<%d>1 ", facility*8+informational)
		s.afterTime = fmt.Appendf(nil, " %s imapgate %d ", host, os.Getpid())
	default:
		return nil, fmt.Errorf("syslog format %q is not one of %s, %s", cfg.Format, RFC3164, RFC5424)
	}
	return s, nil
}

// appendMessage appends a record as a syslog message. The record begins with the
// time and the event, which is the MSGID. There is no BOM, so that the message is
// valid JSON: RFC 5424 §6.4 calls this MSG-ANY. The time of RFC 3164 is local.
func (s *syslogSink) appendMessage(dst, record []byte) []byte {
	_, rest, _ := bytes.Cut(record, []byte(`"time":"`))
	timestamp, rest, _ := bytes.Cut(rest, []byte(`","event":"`))
	event, _, _ := bytes.Cut(rest, []byte{'"'})
	dst = append(dst, s.prefix...)
	if s.format == RFC3164 {
		t, _ := time.Parse(timeLayout, string(timestamp)) // a record's own time is valid
		dst = append(t.Local().AppendFormat(dst, time.Stamp), s.afterTime...)
		return append(dst, record...)
	}
	dst = append(append(dst, timestamp...), s.afterTime...)
	dst = append(append(dst, event...), " - "...)
	return append(dst, record...)
}

// write tries again once if an existing connection fails, because servers restart.
func (s *syslogSink) write(lines []byte) (int, error) {
	isNew := s.conn == nil
	written, err := s.writeOnce(lines)
	if err == nil || isNew {
		return written, err
	}
	more, err := s.writeOnce(lines[written:])
	return written + more, err
}

func (s *syslogSink) writeOnce(lines []byte) (int, error) {
	if err := s.connect(); err != nil {
		return 0, err
	}
	if s.isStream {
		return s.writeFrames(lines)
	}
	written := 0
	for written < len(lines) {
		end := bytes.IndexByte(lines[written:], '\n')
		s.frames = s.appendMessage(s.frames[:0], lines[written:written+end])
		_ = s.conn.SetWriteDeadline(time.Now().Add(sinkTimeout))
		_, err := s.conn.Write(s.frames)
		if errors.Is(err, syscall.EMSGSIZE) && len(s.frames) > maxLocalMessage { // otherwise it would block all later records
			_, err = s.conn.Write(append(s.frames[:maxLocalMessage-len(ellipsis)], ellipsis...))
		}
		if err != nil {
			s.disconnect()
			return written, err
		}
		written += end + 1
	}
	return written, nil
}

// writeFrames writes some of the lines to a stream: in RFC 5424 with their lengths,
// in RFC 3164 one line each (RFC 6587 §3.4.1, §3.4.2). After a failure the partial
// record is sent again on a new connection.
func (s *syslogSink) writeFrames(lines []byte) (int, error) {
	s.frames = s.frames[:0]
	var ends []int // of the frames
	var msg []byte
	for rest := lines; len(rest) > 0 && len(s.frames) < maxFrameBytes; {
		end := bytes.IndexByte(rest, '\n')
		msg = s.appendMessage(msg[:0], rest[:end])
		if s.format == RFC3164 {
			s.frames = append(append(s.frames, msg...), '\n')
		} else {
			s.frames = append(strconv.AppendInt(s.frames, int64(len(msg)), 10), ' ')
			s.frames = append(s.frames, msg...)
		}
		ends = append(ends, len(s.frames))
		rest = rest[end+1:]
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(sinkTimeout))
	n, err := s.conn.Write(s.frames)
	complete := 0
	for complete < len(ends) && ends[complete] <= n {
		complete++
	}
	if err != nil {
		s.disconnect()
	}
	return lengthOfLines(lines, complete), err
}

// connect dials the server if there is no connection. A local socket takes datagrams
// or, failing that, a stream.
func (s *syslogSink) connect() error {
	if s.conn != nil {
		return nil
	}
	d := &net.Dialer{Timeout: sinkTimeout}
	var conn net.Conn
	var err error
	s.isStream = true
	switch s.network {
	case "unix":
		conn, err = d.Dial("unixgram", s.address)
		if s.isStream = err != nil; s.isStream {
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
	if s.isStream {
		s.reader.Go(func() { closeOnEOF(conn) })
	}
	return nil
}

// awaitRefusal waits for a server that refuses our certificate, or the lack of one.
// With TLS 1.3 the refusal comes after the handshake, when data may already be lost.
// A server that accepts sends nothing. After an error conn is closed.
func awaitRefusal(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(refusalTimeout))
	_, err := conn.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return conn.SetReadDeadline(time.Time{})
	}
	_ = conn.Close()
	return err
}

// closeOnEOF is a goroutine that ends with its connection. A syslog server sends
// nothing; after it closes the connection, the next write must fail.
func closeOnEOF(conn net.Conn) {
	var buf [64]byte
	for {
		if _, err := conn.Read(buf[:]); err != nil {
			_ = conn.Close()
			return
		}
	}
}

// disconnect closes the connection; the next write opens a new one.
func (s *syslogSink) disconnect() {
	_ = s.conn.Close()
	s.reader.Wait()
	s.conn = nil
}

func (s *syslogSink) maintain() error { return nil }

func (s *syslogSink) close() error {
	if s.conn != nil {
		s.disconnect()
	}
	return nil
}
