package audit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// rfc3164Form is a message of syslog(3) with a record; it has a HOSTNAME only over a
// network.
var rfc3164Form = regexp.MustCompile(`^<86>([A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d) (\S+ )?imapgate\[` + strconv.Itoa(os.Getpid()) + `\]: (\{.*\})$`)

// lines reads messages of one line each from all connections.
func (c *collector) lines(l net.Listener) { accept(l, c.readLines) }

// readLines returns when the connection ends.
func (c *collector) readLines(conn net.Conn) {
	defer conn.Close()
	for in := bufio.NewScanner(conn); in.Scan(); {
		c.add(in.Text())
	}
}

func TestLocalSyslogServersGetTheirOwnFormat(t *testing.T) {
	for name, start := range map[string]func(*testing.T, *collector) SinkSettings{
		"datagrams": func(t *testing.T, c *collector) SinkSettings {
			path := filepath.Join(t.TempDir(), "log")
			conn, err := net.ListenPacket("unixgram", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			go c.datagrams(conn)
			return SinkSettings{Type: Syslog, Address: "unix://" + path}
		},
		"local stream": func(t *testing.T, c *collector) SinkSettings {
			path := filepath.Join(t.TempDir(), "log")
			go c.lines(listen(t, "unix", path))
			return SinkSettings{Type: Syslog, Address: "unix://" + path}
		},
		"TCP": func(t *testing.T, c *collector) SinkSettings {
			l := listen(t, "tcp", "127.0.0.1:0")
			go c.lines(l)
			return SinkSettings{Type: Syslog, Address: "tcp://" + l.Addr().String(), Format: RFC3164}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var c collector
			l := openSinks(t, Config{Settings: Settings{Sinks: []SinkSettings{start(t, &c)}}})
			for i := range 500 {
				recordRefusal(l, fmt.Sprint(i))
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "500 messages", func() bool { return len(c.all()) >= 500 })
			for i, m := range c.all() {
				parts := rfc3164Form.FindStringSubmatch(m)
				var record struct {
					Session string
					Time    time.Time
				}
				if parts == nil || json.Unmarshal([]byte(parts[3]), &record) != nil || record.Session != fmt.Sprint(i) {
					t.Fatalf("not a message with a record: %s", m)
				}
				if parts[1] != record.Time.Local().Format(time.Stamp) || (parts[2] != "") != (name == "TCP") {
					t.Fatalf("message %d: %s", i, m)
				}
			}
		})
	}
}

func TestRsyslogRecognizesProgramAndProcess(t *testing.T) {
	socket, file := testbed.StartRsyslog(t, `%programname%|%procid%|%syslogfacility-text%|%syslogseverity-text%|%hostname%|%msg%`)
	l := openSinks(t, Config{Settings: Settings{Sinks: []SinkSettings{{Type: Syslog, Address: "unix://" + socket}}}})
	long := strings.Repeat("\u202e", 200) // more than 1,400 bytes in a record
	_ = l.ConnectionRefused(&Client{Session: "s1", Listener: long, ServerName: long, TLSVersion: 0x304, Program: long}, event.HandshakeFailed, long, 0)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var line string
	testkit.Eventually(t, "the message", func() bool {
		text, _ := os.ReadFile(file)
		line, _, _ = strings.Cut(string(text), "\n")
		return strings.Contains(string(text), "\n")
	})
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	host, _, _ = strings.Cut(host, ".")
	parts := strings.SplitN(line, "|", 6)
	var record map[string]any
	if len(parts) != 6 || parts[0] != "imapgate" || parts[1] != strconv.Itoa(os.Getpid()) || parts[2] != "authpriv" || parts[3] != "info" || parts[4] != host {
		t.Errorf("rsyslog has %q", line)
	} else if json.Unmarshal([]byte(parts[5]), &record) != nil || record["session"] != "s1" {
		t.Errorf("the message is %q", parts[5])
	}
}

// shortConn is a local socket that refuses long datagrams, as on macOS.
type shortConn struct {
	net.Conn
	got []string
}

func (s *shortConn) Write(b []byte) (int, error) {
	if len(b) > 2048 {
		return 0, &net.OpError{Op: "write", Err: os.NewSyscallError("write", syscall.EMSGSIZE)}
	}
	s.got = append(s.got, string(b))
	return len(b), nil
}

func (s *shortConn) SetWriteDeadline(time.Time) error { return nil }

func TestOversizedMessageDoesNotBlockOthers(t *testing.T) {
	s, err := newSyslog(testbed.WithDefaults(SinkSettings{Type: Syslog, Address: "unix:///dev/log"}))
	if err != nil {
		t.Fatal(err)
	}
	conn := &shortConn{}
	s.conn = conn
	record := `{"v":1,"time":"2026-05-01T12:00:00.000Z","event":"started","version":"` + strings.Repeat("x", 3000) + "\"}\n"
	lines := []byte(record + `{"v":1,"time":"2026-05-01T12:00:00.000Z","event":"stopped"}` + "\n")
	if n, err := s.write(lines); err != nil || n != len(lines) {
		t.Fatalf("%d of %d bytes are accepted: %v", n, len(lines), err)
	}
	if len(conn.got) != 2 || len(conn.got[0]) != maxLocalMessage || !strings.HasSuffix(conn.got[0], "x…") || !rfc3164Form.MatchString(conn.got[1]) {
		t.Errorf("sent: %q", conn.got)
	}
}
