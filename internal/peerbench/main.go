// Command peerbench benchmarks IMAP proxies with one load generator, one stub backend and
// the same workloads for each proxy.
//
//	peerbench stub   -addr 127.0.0.1:31000 [-size 10485760]       serve the stub IMAP backend
//	peerbench login  -addr HOST:PORT -tls -c 16 -d 5s [-pids P,P]  connect, (TLS), LOGIN, LOGOUT, repeated
//	peerbench noop   -addr HOST:PORT -tls -c 16 -d 5s [-pids P,P]  NOOP round trips on open sessions
//	peerbench fetch  -addr HOST:PORT -tls -c 4  -d 5s [-pids P,P]  UID FETCH 1 BODY.PEEK[] downloads
//	peerbench append -addr HOST:PORT -tls -c 4  -d 5s [-pids P,P]  APPEND uploads of -size bytes
//	peerbench idle   -addr HOST:PORT -tls -n 2000  [-pids P,P]     N sessions in IDLE; memory of each
//	peerbench ping   -addr HOST:PORT -tls -d 2s                    latency of one NOOP at a time
//
// -pids names the proxy's process ids (their descendants are included); their
// CPU time and proportional memory (PSS) are read from /proc.
// Results go to standard output as one line of name=value pairs.
package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	addr         = flag.String("addr", "127.0.0.1:31000", "address")
	useTLS       = flag.Bool("tls", false, "implicit TLS (certificate not verified)")
	resumeTLS    = flag.Bool("resume", false, "allow TLS session resumption")
	concurrency  = flag.Int("c", 8, "concurrent sessions")
	duration     = flag.Duration("d", 5*time.Second, "duration")
	sessionCount = flag.Int("n", 1000, "sessions for idle")
	proxyPIDs    = flag.String("pids", "", "comma-separated pids of the proxy")
	userFormat   = flag.String("user", "user%04d", "user name format")
	userCount    = flag.Int("users", 1000, "number of users")
	password     = flag.String("pass", "pw", "password")
	messageSize  = flag.Int("size", 10<<20, "message size")
	settleTime   = flag.Duration("settle", 5*time.Second, "wait before reading memory")
	noSelect     = flag.Bool("noselect", false, "idle: do not SELECT first")
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: peerbench stub|login|noop|fetch|append|idle|ping [flags]")
		os.Exit(2)
	}
	mode := os.Args[1]
	flag.CommandLine.Parse(os.Args[2:])
	var err error
	switch mode {
	case "stub":
		err = serveStub()
	case "login":
		err = runLoad(loginOp, false)
	case "noop":
		err = runLoad(noopOp, true)
	case "fetch":
		err = runLoad(fetchOp, true)
	case "append":
		err = runLoad(appendOp, true)
	case "ping":
		*concurrency = 1
		err = runLoad(noopOp, true)
	case "idle":
		err = runIdle()
	default:
		err = fmt.Errorf("unknown mode %q", mode)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peerbench:", err)
		os.Exit(1)
	}
}

// session is one client connection.
type session struct {
	conn     net.Conn
	r        *bufio.Reader
	tagCount int
}

var sessionCache = tls.NewLRUClientSessionCache(4096)

func dial() (*session, error) {
	d := net.Dialer{Timeout: 10 * time.Second}
	c, err := d.Dial("tcp", *addr)
	if err != nil {
		return nil, err
	}
	if *useTLS {
		cfg := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}
		if *resumeTLS {
			cfg.ClientSessionCache = sessionCache
		}
		tc := tls.Client(c, cfg)
		if err := tc.Handshake(); err != nil {
			c.Close()
			return nil, err
		}
		c = tc
	}
	s := &session{conn: c, r: bufio.NewReaderSize(c, 4096)}
	c.SetDeadline(time.Now().Add(60 * time.Second))
	line, err := s.r.ReadString('\n')
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("greeting: %w", err)
	}
	if !strings.HasPrefix(line, "* OK") {
		c.Close()
		return nil, fmt.Errorf("greeting: %q", line)
	}
	return s, nil
}

// exec sends one command and reads to its tagged response; literal bytes are
// discarded and counted.
func (s *session) exec(text string) (bytes int, err error) {
	s.tagCount++
	tag := "a" + strconv.Itoa(s.tagCount)
	s.conn.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := io.WriteString(s.conn, tag+" "+text+"\r\n"); err != nil {
		return 0, err
	}
	return s.readTagged(tag)
}

func (s *session) readTagged(tag string) (bytes int, err error) {
	for {
		line, err := s.r.ReadSlice('\n')
		if err != nil {
			return bytes, err
		}
		if n := literalSize(line); n >= 0 {
			m, err := io.CopyN(io.Discard, s.r, int64(n))
			bytes += int(m)
			if err != nil {
				return bytes, err
			}
			continue
		}
		l := string(line)
		if strings.HasPrefix(l, tag+" ") {
			if !strings.HasPrefix(l, tag+" OK") {
				return bytes, fmt.Errorf("%s", strings.TrimSpace(l))
			}
			return bytes, nil
		}
	}
}

func literalSize(line []byte) int {
	t := strings.TrimRight(string(line), "\r\n")
	if !strings.HasSuffix(t, "}") {
		return -1
	}
	i := strings.LastIndexByte(t, '{')
	if i < 0 {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSuffix(t[i+1:len(t)-1], "+"))
	if err != nil {
		return -1
	}
	return n
}

var nextUser atomic.Int64

func login() (*session, error) {
	s, err := dial()
	if err != nil {
		return nil, err
	}
	u := fmt.Sprintf(*userFormat, nextUser.Add(1)%int64(*userCount)+1)
	if _, err := s.exec("LOGIN " + u + " " + *password); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("login: %w", err)
	}
	return s, nil
}

type operation func(s *session) (int, error)

func loginOp(*session) (int, error) {
	s, err := login()
	if err != nil {
		return 0, err
	}
	_, err = s.exec("LOGOUT")
	s.conn.Close()
	return 0, err
}
func noopOp(s *session) (int, error)  { return s.exec("NOOP") }
func fetchOp(s *session) (int, error) { return s.exec("UID FETCH 1 (BODY.PEEK[])") }

var message = sync.OnceValue(func() []byte {
	line := strings.Repeat("0123456789abcdef", 4) + "\r\n"
	b := []byte("Subject: bench\r\n\r\n" + strings.Repeat(line, *messageSize/len(line)+1))
	return b[:*messageSize]
})

func appendOp(s *session) (int, error) {
	s.tagCount++
	tag := "a" + strconv.Itoa(s.tagCount)
	s.conn.SetDeadline(time.Now().Add(60 * time.Second))
	fmt.Fprintf(s.conn, "%s APPEND Drafts {%d}\r\n", tag, *messageSize)
	l, err := s.r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if !strings.HasPrefix(l, "+") {
		return 0, fmt.Errorf("append: %q", l)
	}
	if _, err := s.conn.Write(message()); err != nil {
		return 0, err
	}
	io.WriteString(s.conn, "\r\n")
	_, err = s.readTagged(tag)
	return *messageSize, err
}

func runLoad(do operation, keepOpen bool) error {
	var (
		wg        sync.WaitGroup
		mu        sync.Mutex
		latencies []time.Duration
		bytes     int64
		errs      int
		firstErr  error
		open      = make([]*session, *concurrency)
		cpuBefore float64
		start     time.Time
	)
	if keepOpen {
		for i := range open {
			s, err := login()
			if err != nil {
				return err
			}
			if _, err := s.exec("SELECT INBOX"); err != nil {
				return err
			}
			open[i] = s
		}
	}
	cpuBefore = cpuTime()
	start = time.Now()
	deadline := start.Add(*duration)
	for i := range *concurrency {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var l []time.Duration
			var b int64
			var e int
			var lastErr error
			for time.Now().Before(deadline) {
				t := time.Now()
				n, err := do(open[i])
				if err != nil {
					e++
					lastErr = err
					if keepOpen {
						break
					}
					continue
				}
				l = append(l, time.Since(t))
				b += int64(n)
			}
			mu.Lock()
			latencies = append(latencies, l...)
			bytes += b
			errs += e
			if lastErr != nil {
				firstErr = lastErr
			}
			mu.Unlock()
		}()
	}
	wg.Wait()
	elapsed := time.Since(start).Seconds()
	return report(results{latencies, bytes, errs, firstErr, elapsed, cpuTime() - cpuBefore})
}

// results are the measurements of one load.
type results struct {
	latencies []time.Duration
	bytes     int64
	errs      int
	firstErr  error
	elapsed   float64 // seconds
	cpu       float64 // seconds of the proxy
}

// report prints one line of name=value pairs.
func report(r results) error {
	if len(r.latencies) == 0 {
		return fmt.Errorf("no operation succeeded: %w", r.firstErr)
	}
	sort.Slice(r.latencies, func(i, j int) bool { return r.latencies[i] < r.latencies[j] })
	n := float64(len(r.latencies))
	q := func(p float64) float64 {
		return float64(r.latencies[min(len(r.latencies)-1, int(p*n))].Microseconds()) / 1000
	}
	fmt.Printf("ops=%d errors=%d ops_s=%.0f p50_ms=%.3f p99_ms=%.3f", len(r.latencies), r.errs, n/r.elapsed, q(.5), q(.99))
	if r.bytes > 0 {
		fmt.Printf(" MB_s=%.0f", float64(r.bytes)/r.elapsed/1e6)
	}
	if *proxyPIDs != "" {
		fmt.Printf(" cpu_us_op=%.1f", r.cpu*1e6/n)
		if r.bytes > 0 {
			fmt.Printf(" cpu_ms_MB=%.4f", r.cpu*1e3/(float64(r.bytes)/1e6))
		}
	}
	if r.firstErr != nil {
		fmt.Printf(" first_error=%q", r.firstErr.Error())
	}
	fmt.Println()
	return nil
}

func runIdle() error {
	before := readPSS()
	var sessions []*session
	for i := range *sessionCount {
		s, err := login()
		if err != nil {
			return fmt.Errorf("session %d: %w", i, err)
		}
		if !*noSelect {
			if _, err := s.exec("SELECT INBOX"); err != nil {
				return err
			}
		}
		s.tagCount++
		fmt.Fprintf(s.conn, "a%d IDLE\r\n", s.tagCount)
		if l, err := s.r.ReadString('\n'); err != nil || !strings.HasPrefix(l, "+") {
			return fmt.Errorf("idle: %q %v", l, err)
		}
		sessions = append(sessions, s)
	}
	time.Sleep(*settleTime)
	cpuBefore := cpuTime()
	time.Sleep(2 * time.Second)
	cpu := cpuTime() - cpuBefore
	after := readPSS()
	fmt.Printf("sessions=%d kb_before=%d kb_after=%d kb_session=%.1f idle_cpu_ms_s=%.2f\n", len(sessions), before, after,
		float64(after-before)/float64(len(sessions)), cpu*1e3/2)
	for _, s := range sessions {
		s.conn.Close()
	}
	return nil
}

// serveStub serves a minimal IMAP backend: any login, one mailbox, one message.
func serveStub() error {
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	msg := message()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go serveConn(c, msg)
	}
}

// discardLiterals reads and discards the literals of a command, and the lines after them.
func discardLiterals(r *bufio.Reader, line string, writeLine func(string, ...any) bool) error {
	for {
		n := literalSize([]byte(line))
		if n < 0 {
			return nil
		}
		if !strings.HasSuffix(strings.TrimSpace(line), "+}") {
			writeLine("+ go")
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return err
		}
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			return err
		}
	}
}

func serveConn(c net.Conn, msg []byte) {
	defer c.Close()
	const caps = "IMAP4rev1 LITERAL+ SASL-IR ID ENABLE IDLE UIDPLUS MOVE UNSELECT NAMESPACE"
	r := bufio.NewReaderSize(c, 512)
	writeLine := func(f string, a ...any) bool { _, err := fmt.Fprintf(c, f+"\r\n", a...); return err == nil }
	writeLine("* OK [CAPABILITY %s AUTH=PLAIN] ready", caps)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			writeLine("* BAD empty")
			continue
		}
		tag, name := f[0], strings.ToUpper(f[1])
		if err := discardLiterals(r, line, writeLine); err != nil {
			return
		}
		switch name {
		case "CAPABILITY":
			writeLine("* CAPABILITY %s\r\n%s OK done", caps, tag)
		case "AUTHENTICATE":
			if len(f) < 4 {
				writeLine("+ ")
				r.ReadString('\n')
			}
			writeLine("%s OK [CAPABILITY %s] in", tag, caps)
		case "LOGIN":
			writeLine("%s OK [CAPABILITY %s] in", tag, caps)
		case "SELECT", "EXAMINE":
			writeLine("* FLAGS (\\Seen \\Deleted)\r\n* 1 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] ok\r\n* OK [UIDNEXT 2] ok\r\n%s OK [READ-WRITE] selected", tag)
		case "UID", "FETCH":
			switch {
			case strings.Contains(line, "BODY.PEEK[]"):
				writeLine("* 1 FETCH (UID 1 BODY[] {%d}", len(msg))
				c.Write(msg)
				writeLine(")\r\n%s OK fetched", tag)
			case strings.Contains(line, "SEARCH"):
				writeLine("* SEARCH 1\r\n%s OK found", tag)
			default:
				writeLine("* 1 FETCH (UID 1 FLAGS (\\Seen))\r\n%s OK fetched", tag)
			}
		case "APPEND":
			writeLine("%s OK [APPENDUID 1 2] appended", tag)
		case "IDLE":
			writeLine("+ idling")
			if _, err := r.ReadString('\n'); err != nil {
				return
			}
			writeLine("%s OK idle done", tag)
		case "LOGOUT":
			writeLine("* BYE bye\r\n%s OK out", tag)
			return
		default:
			writeLine("%s OK done", tag)
		}
	}
}
