package audit

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func openSinks(t *testing.T, cfg Config) *Log {
	t.Helper()
	return startQuick(t, newLog(testbed.WithDefaults(cfg, "path", "first_per_minute"), zap.NewNop()))
}

// collector is a syslog server that keeps every message.
type collector struct {
	mu       sync.Mutex
	messages []string // Guarded by mu.
}

func (c *collector) add(message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.messages = append(c.messages, message)
}

func (c *collector) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.messages...)
}

// frames reads messages with their lengths (RFC 6587 §3.4.1) from all connections,
// until the listener is closed.
func (c *collector) frames(l net.Listener) { accept(l, c.read) }

// accept calls read for each connection, until the listener is closed.
func accept(l net.Listener, read func(net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go read(conn)
	}
}

// read returns when the connection ends.
func (c *collector) read(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		length, err := in.ReadString(' ')
		if err != nil {
			return
		}
		n, err := strconv.Atoi(strings.TrimSuffix(length, " "))
		if err != nil {
			c.add("not a length: " + length)
			return
		}
		message := make([]byte, n)
		if _, err := io.ReadFull(in, message); err != nil {
			return // a partial message does not count
		}
		c.add(string(message))
	}
}

// datagrams reads messages until the socket is closed.
func (c *collector) datagrams(conn net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		c.add(string(buf[:n]))
	}
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// rfc5424Form is a message of RFC 5424 §6 with a record.
var rfc5424Form = regexp.MustCompile(`^<86>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) \S+ imapgate ` + strconv.Itoa(os.Getpid()) + ` (\w+) - (\{.*\})$`)

func TestSyslogServersOfEveryKindGetEveryRecord(t *testing.T) {
	ca := testbed.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pem := readAll(t, ca.File)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for name, start := range map[string]func(*testing.T, *collector) SinkSettings{
		"datagrams": func(t *testing.T, c *collector) SinkSettings {
			path := filepath.Join(t.TempDir(), "log")
			conn, err := net.ListenPacket("unixgram", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			go c.datagrams(conn)
			return SinkSettings{Type: Syslog, Address: "unix://" + path, Format: RFC5424}
		},
		"local stream": func(t *testing.T, c *collector) SinkSettings {
			path := filepath.Join(t.TempDir(), "log")
			go c.frames(listen(t, "unix", path))
			return SinkSettings{Type: Syslog, Address: "unix://" + path, Format: RFC5424}
		},
		"TCP": func(t *testing.T, c *collector) SinkSettings {
			l := listen(t, "tcp", "127.0.0.1:0")
			go c.frames(l)
			return SinkSettings{Type: Syslog, Address: "tcp://" + l.Addr().String()}
		},
		"TLS": func(t *testing.T, c *collector) SinkSettings {
			l := tls.NewListener(listen(t, "tcp", "127.0.0.1:0"), &tls.Config{Certificates: []tls.Certificate{pair}})
			go c.frames(l)
			return SinkSettings{Type: Syslog, Address: "tls://" + l.Addr().String(), TLS: testbed.StaticTLS(&tls.Config{RootCAs: roots})}
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
				parts := rfc5424Form.FindStringSubmatch(m)
				var record map[string]any
				if parts == nil || json.Unmarshal([]byte(parts[3]), &record) != nil {
					t.Fatalf("not a message with a record: %s", m)
				}
				if record["session"] != fmt.Sprint(i) || record["time"] != parts[1] || record["event"] != parts[2] {
					t.Fatalf("message %d: %s", i, m)
				}
			}
		})
	}
}

func TestSyslogServerWithAWrongCertificateGetsNothing(t *testing.T) {
	t.Parallel()
	cert, key := testbed.NewCA(t).Issue(t, "127.0.0.1")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	var c collector
	server := tls.NewListener(listen(t, "tcp", "127.0.0.1:0"), &tls.Config{Certificates: []tls.Certificate{pair}})
	go c.frames(server)
	l := openSinks(t, Config{Settings: Settings{Sinks: []SinkSettings{{Type: Syslog, Address: "tls://" + server.Addr().String(), TLS: testbed.StaticTLS(&tls.Config{})}}}})
	recordRefusal(l, "secret")
	testkit.Eventually(t, "the sink fails", func() bool { return l.Sinks()[0].Failing })
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) || len(c.all()) > 0 {
		t.Errorf("%v, %q", err, c.all())
	}
}

// With TLS 1.3 the refusal may arrive after the first records are sent.
func TestSyslogServerThatRequiresACertificateLosesNoRecord(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key := ca.Issue(t, "gateway")
	shown, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		var c collector
		server := tls.NewListener(listen(t, "tcp", "127.0.0.1:0"), &tls.Config{Certificates: []tls.Certificate{pair},
			ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: version})
		go c.frames(server)
		var current atomic.Pointer[tls.Config]
		current.Store(&tls.Config{RootCAs: ca.Pool})
		l := openSinks(t, Config{Settings: Settings{Sinks: []SinkSettings{{Type: Syslog, Address: "tls://" + server.Addr().String(), TLS: current.Load}}}})
		recordRefusal(l, "0")
		testkit.Eventually(t, "the sink fails", func() bool { return l.Sinks()[0].Failing })
		if err := l.Ready(); err == nil || len(c.all()) > 0 {
			t.Errorf("%s: %v, %q", tls.VersionName(version), err, c.all())
		}
		current.Store(&tls.Config{RootCAs: ca.Pool, Certificates: []tls.Certificate{shown}})
		testkit.Eventually(t, "the record arrives", func() bool { return len(c.all()) == 1 })
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestSinkReconnectsToARestartedSyslogServer(t *testing.T) {
	t.Parallel()
	var c collector
	path := filepath.Join(t.TempDir(), "log")
	first := listen(t, "unix", path)
	l := openSinks(t, Config{Settings: Settings{Sinks: []SinkSettings{{Type: Syslog, Address: "unix://" + path, Format: RFC5424}}}})
	recordRefusal(l, "0")
	conn, err := first.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go c.read(conn)
	testkit.Eventually(t, "the first message", func() bool { return len(c.all()) == 1 })
	_ = first.Close()
	_ = conn.Close()
	go c.frames(listen(t, "unix", path))
	for i := range 100 {
		recordRefusal(l, fmt.Sprint(i+1))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "all messages", func() bool { return len(c.all()) == 101 })
}

func TestRedisStreamGetsEveryRecordAndKeepsItsBound(t *testing.T) {
	t.Parallel()
	server := testbed.StartRedis(t)
	client := redis.NewClient(&redis.Options{Addr: server.Address})
	defer client.Close()
	l := openSinks(t, Config{Redis: client, Settings: Settings{Sinks: []SinkSettings{{Type: Redis, Stream: "imapgate:audit", MaxRecords: 1000}}}})
	for i := range 3000 {
		recordRefusal(l, fmt.Sprint(i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := client.XRange(context.Background(), "imapgate:audit", "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 1000 || len(entries) > 1200 { // approximate: whole nodes of 100 entries
		t.Errorf("%d entries", len(entries))
	}
	for i, e := range entries {
		var record map[string]any
		if err := json.Unmarshal([]byte(e.Values["record"].(string)), &record); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(3000 - len(entries) + i); record["session"] != want {
			t.Fatalf("entry %d is of session %v, want %s", i, record["session"], want)
		}
	}
}

func TestRedisOutageLosesNoBufferedRecord(t *testing.T) {
	t.Parallel()
	server := testbed.StartRedis(t)
	client := redis.NewClient(&redis.Options{Addr: server.Address, MaxRetries: -1, DialTimeout: time.Second})
	defer client.Close()
	l := openSinks(t, Config{Redis: client, Settings: Settings{Sinks: []SinkSettings{{Type: Redis, Stream: "a", MaxRecords: 100_000}}}})
	server.Kill()
	for i := range 500 {
		recordRefusal(l, fmt.Sprint(i))
	}
	testkit.Eventually(t, "the sink fails", func() bool { return l.Ready() != nil })
	server.Restart()
	testkit.Eventually(t, "ready again", func() bool { return l.Ready() == nil })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := client.XLen(context.Background(), "a").Result(); err != nil || n != 500 || l.LostRecords() != 0 {
		t.Errorf("%d entries, %v, %d lost", n, err, l.LostRecords())
	}
}

// makeStuckFIFO returns a FIFO that is open for reading but not read.
func makeStuckFIFO(t *testing.T) string {
	t.Helper()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Close() })
	return fifo
}

func TestStuckSinkDoesNotBlockOthers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := openStuck(t, Config{Settings: Settings{Sinks: []SinkSettings{
		{Type: File, Name: "stuck", Path: makeStuckFIFO(t), OnFailure: "drop"},
		{Type: File, Path: path},
	}}})
	sent := maxBufferedRecords + 2000
	for i := range sent {
		if err := l.LoginAccepted(testClient(), testLogin(t)); err != nil {
			t.Fatal(err)
		}
		if i%1000 == 0 { // otherwise the file's writer may lag
			testkit.Eventually(t, "the file has them", func() bool { return l.Sinks()[1].WrittenRecords == uint64(i+1) })
		}
	}
	testkit.Eventually(t, "the file has all", func() bool { return l.Sinks()[1].WrittenRecords == uint64(sent) })
	if s := l.Sinks(); s[0].Name != "stuck" || s[0].LostRecords < 2000-1000 || s[1].LostRecords != 0 {
		t.Errorf("%+v", s)
	}
}

func TestSinkGetsOnlyRecordsThatMatchItsFilter(t *testing.T) {
	dir := t.TempDir()
	all, some := filepath.Join(dir, "all"), filepath.Join(dir, "some")
	l := openSinks(t, Config{Settings: Settings{Sinks: []SinkSettings{
		{Type: File, Path: all},
		{Type: File, Name: "some", Path: some, Events: []string{"login_accepted", "login_refused", "ban_added"}, Results: []string{"refused"}},
	}}})
	_ = l.LoginAccepted(testClient(), testLogin(t))
	_ = l.LoginRefused(testClient(), testLogin(t), event.BadCredentials)
	_ = l.LoginRefused(testClient(), testLogin(t), event.AuthUnavailable)
	_ = l.BanAdded(&Ban{Subject: "192.0.2.0/24", Reason: event.BanFailures})
	_ = l.GatewayStarted("v1")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := lines(t, all); len(got) != 5 {
		t.Errorf("%d records without a filter", len(got))
	}
	got := lines(t, some)
	if len(got) != 2 || got[0]["reason"] != "bad_credentials" || got[1]["event"] != "ban_added" {
		t.Errorf("%v", got)
	}
}

func TestOpenNamesWhatIsWrongWithASink(t *testing.T) {
	for want, s := range map[string]SinkSettings{
		"unknown sink type":       {Type: "carrier pigeon"},
		"needs Redis":             {Type: Redis},
		"unknown event":           {Type: Stdout, Events: []string{"weather"}},
		"unknown result":          {Type: Stdout, Results: []string{"fine"}},
		"not one of block, drop":  {Type: Stdout, OnFailure: "perhaps"},
		"is not unix:///path":     {Type: Syslog, Address: "udp://127.0.0.1:514"},
		"needs TLS settings":      {Type: Syslog, Address: "tls://127.0.0.1:6514"},
		"syslog format \"bsd\"":   {Type: Syslog, Address: "unix:///dev/log", Format: "bsd"},
		"unknown syslog facility": {Type: Syslog, Address: "tcp://127.0.0.1:514", Facility: "local9"},
	} {
		if l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Sinks: []SinkSettings{s}}}, "path", "first_per_minute"), zap.NewNop()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
			if err == nil {
				_ = l.Close()
			}
		}
	}
}

func TestLimitHitFloodMakesOneRecordAMinute(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	synctest.Test(t, func(t *testing.T) {
		l, o := newBufferedLog()
		ctx, enough := context.WithCancel(t.Context())
		l.aggregatesDone.Go(func() { l.runAggregates(ctx) })
		c, hit := testClient(), &LimitHit{Limit: event.LimitConnectionRate, Subject: "192.0.2.1", Result: event.ResultRefused}
		for range 1000 {
			_ = l.LimitHit(c, hit)
			time.Sleep(100 * time.Millisecond) // in the bubble's clock
		}
		time.Sleep(10 * time.Minute)
		_ = l.LimitHit(c, hit)
		enough()
		l.aggregatesDone.Wait()
		if err := os.WriteFile(path, o.pending, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	sum, got := 0.0, lines(t, path)
	for _, r := range got {
		sum += r["count"].(float64)
	}
	if len(got) != 4 || sum != 1001 || got[0]["count"] != 1.0 || got[0]["session"] == nil || got[1]["session"] != nil {
		t.Errorf("%d records of %v hits: %v", len(got), sum, got)
	}
}

func TestLimitHitsOfManySubjectsAreBounded(t *testing.T) {
	h := tally[LimitHit, struct{}]{maxKeys: maxLimitHits}
	now := time.Now()
	total := uint64(0)
	for i := range 100_000 {
		hit := LimitHit{Limit: event.LimitConnectionRate, Result: event.ResultRefused}
		shared := hit
		hit.Subject = fmt.Sprint(i)
		if h.add(hit, shared, now, (*count[struct{}]).foldAfterFirst) {
			total++
		}
	}
	if len(h.counts) > maxLimitHits+1 {
		t.Errorf("%d subjects are counted separately", len(h.counts))
	}
	for _, c := range h.takeDue(now.Add(aggregateInterval)) {
		total += c.folded
	}
	if total != 100_000 {
		t.Errorf("%d of 100000 hits are reported", total)
	}
	h.takeDue(now.Add(2 * aggregateInterval))
	if h.takeDue(now.Add(4 * aggregateInterval)); len(h.counts) != 0 {
		t.Errorf("%d subjects are still counted separately", len(h.counts))
	}
}

// BenchmarkCommandsToAFile measures the whole cost of command records, at the rate
// at which they reach a file.
func BenchmarkCommandsToAFile(b *testing.B) {
	for name, chain := range map[string]bool{"plain": false, "chained": true} {
		b.Run(name, func(b *testing.B) {
			l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: filepath.Join(b.TempDir(), "audit.log"), Commands: AllCommands, Chain: chain, OnFailure: "drop"}}, "path", "first_per_minute"), zap.NewNop())
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			c, cmd := testClient(), testCommand(testLogin(b))
			before := cpuTime()
			for n := uint64(1); b.Loop(); n++ {
				_ = l.Command(c, cmd)
				for n%1000 == 0 && l.Sinks()[0].WrittenRecords+2000 < n {
					<-time.After(time.Millisecond) // idle: busy waiting would count as a cost of the records
				}
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
			if l.LostRecords() > 0 {
				b.Errorf("%d lost", l.LostRecords())
			}
		})
	}
}

// cpuTime returns the CPU time that the process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail for the process itself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
