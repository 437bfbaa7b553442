package routing

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// scriptedRedis is a Redis whose answers a test defines. It accepts connections until the test
// ends.
type scriptedRedis struct {
	// Set once.
	t      *testing.T
	l      net.Listener
	answer func(n int, args []string) string // n counts the commands on a connection
}

// startScripted returns the address of a scripted server.
func startScripted(t *testing.T, answer func(n int, args []string) string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scriptedRedis{t: t, l: l, answer: answer}
	done := make(chan struct{})
	go s.accept(done)
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

// accept runs until the listener is closed.
func (s *scriptedRedis) accept(done chan<- struct{}) {
	defer close(done)
	for {
		conn, err := s.l.Accept()
		if err != nil {
			return
		}
		s.t.Cleanup(func() { _ = conn.Close() })
		go s.serve(conn)
	}
}

// serve runs until the connection ends.
func (s *scriptedRedis) serve(conn net.Conn) {
	r := bufio.NewReader(conn)
	for n := 0; ; n++ {
		args, err := readCommand(r)
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, s.answer(n, args)); err != nil {
			return
		}
	}
}

// readCommand reads one command as a client sends it.
func readCommand(r *bufio.Reader) ([]string, error) {
	length := func() (int, error) {
		line, err := r.ReadString('\n')
		if err != nil || len(line) < 4 {
			return 0, errors.Join(err, io.ErrUnexpectedEOF)
		}
		return strconv.Atoi(line[1 : len(line)-2])
	}
	n, err := length()
	if err != nil {
		return nil, err
	}
	args := make([]string, n)
	for i := range args {
		size, err := length()
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		args[i] = string(b[:size])
	}
	return args, nil
}

// bulkArray is a reply of strings: a hash, if fields and values alternate.
func bulkArray(text ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(text))
	for _, s := range text {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(s), s)
	}
	return b.String()
}

// normalReply answers as a Redis with one default route does.
func normalReply(args []string) string {
	switch {
	case args[0] == "echo" || args[0] == "ECHO":
		return fmt.Sprintf("$%d\r\n%s\r\n", len(args[1]), args[1])
	case args[0] == "hgetall" && args[1] == "imapgate:default":
		return bulkArray("backend", "east")
	case args[0] == "hgetall":
		return "*0\r\n"
	}
	return "-ERR unknown command\r\n"
}

func TestInvalidRepliesAreNeverARoute(t *testing.T) {
	wrong := map[string]string{
		"silence":              "",
		"half a reply":         "*4\r\n$7\r\nbackend\r\n$4\r\nwe",
		"a string":             "$4\r\nwest\r\n",
		"a number":             ":1\r\n",
		"null":                 "*-1\r\n",
		"an odd hash":          bulkArray("backend"),
		"a nested hash":        "*2\r\n*1\r\n$1\r\nx\r\n$4\r\nwest\r\n",
		"a huge announcement":  "*999999999999999999999\r\n",
		"a huge string":        "*2\r\n$99999999999999999999\r\n",
		"a negative length":    "*-7\r\n",
		"no RESP at all":       "HTTP/1.1 400 Bad Request\r\n\r\n",
		"a push":               ">2\r\n$10\r\ninvalidate\r\n_\r\n",
		"a redirect to itself": "-MOVED 1 127.0.0.1:1\r\n",
	}
	for _, e := range []string{"LOADING x", "READONLY x", "MISCONF x", "OOM x", "NOAUTH x", "NOPERM x", "CLUSTERDOWN x", "MASTERDOWN x",
		"TRYAGAIN x", "BUSY x", "ERR max number of clients reached", "ERR x", "EXECABORT x", ""} {
		wrong["-"+e] = "-" + e + "\r\n"
	}
	for name, reply := range wrong {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var faulty atomic.Bool
			address := startScripted(t, func(_ int, args []string) string {
				if faulty.Load() && args[0] == "hgetall" && strings.HasPrefix(args[1], "imapgate:user:") {
					return reply
				}
				return normalReply(args)
			})
			r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}}))
			known, unknown := user(t, "known"), user(t, "unknown")
			if got, err := r.Lookup(t.Context(), known); err != nil || got.Backend != "east" {
				t.Fatalf("while all was well: %+v, %v", got, err)
			}
			faulty.Store(true)
			r.cache.suspectUser(known)
			if got, err := r.Lookup(t.Context(), known); err != nil || got.Backend != "east" || got.Origin != event.OriginStale {
				t.Errorf("a known user: %+v, %v", got, err)
			}
			if got, err := r.Lookup(t.Context(), unknown); !errors.Is(err, ErrUnavailable) {
				t.Errorf("an unknown user: %+v, %v", got, err)
			}
			faulty.Store(false)
			testkit.Eventually(t, "the unknown user to be found", func() bool {
				got, err := r.Lookup(t.Context(), unknown)
				return err == nil && got.Backend == "east"
			})
		})
	}
}

// One reply too many, or one lost, would assign every later reply on the connection to another
// user.
func TestShiftedRepliesAreRejected(t *testing.T) {
	for name, shift := range map[string]string{
		"one too many":                 bulkArray("backend", "west"),
		"one too many, an echo":        "$3\r\nabc\r\n",
		"one too many, another user's": bulkArray("backend", "west", "user", "mallory"),
	} {
		t.Run(name, func(t *testing.T) {
			var once atomic.Bool
			address := startScripted(t, func(_ int, args []string) string {
				if args[0] == "hgetall" && once.CompareAndSwap(false, true) {
					return shift + normalReply(args)
				}
				return normalReply(args)
			})
			r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}}))
			for i := range 20 {
				u := user(t, fmt.Sprint("u", i))
				if got, err := r.Lookup(t.Context(), u); err == nil && got.Backend != "east" {
					t.Fatalf("%s gets another user's route: %+v", u, got)
				} else if err != nil && !errors.Is(err, ErrUnavailable) {
					t.Fatalf("%s: %v", u, err)
				} else if i > 10 && err != nil {
					t.Fatalf("the connection is still used: %v", err)
				}
			}
		})
	}
}

func TestASilentServerTimesOut(t *testing.T) {
	// The kernel accepts the connection, and the server never reads.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nothing was written
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{l.Addr().String()}}}))
	for i := range 6 {
		if _, err := r.Lookup(t.Context(), user(t, fmt.Sprint("u", i))); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := r.Lookup(t.Context(), user(t, "next")); !errors.Is(err, errBreakerOpen) { // without a query
		t.Errorf("after many failures: %v", err)
	}
}

func TestRESP3MessagesAreParsed(t *testing.T) {
	for in, want := range map[string]string{
		">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n": `>["invalidate" *["k"]]`,
		">2\r\n$10\r\ninvalidate\r\n_\r\n":             `>["invalidate" ""]`,
		"+PONG\r\n":                                    `"PONG"`,
		"%1\r\n+a\r\n:1\r\n":                           `%["a" "1"]`,
		"*-1\r\n":                                      `*[]`,
		"$-1\r\n":                                      `""`,
		"$2\r\n\r\n\r\n":                               `"` + `\r\n"`,
	} {
		m, err := readMessage(in)
		if err != nil || m.String() != want {
			t.Errorf("%q: %s, %v; want %s", in, m, err, want)
		}
	}
	for _, in := range []string{
		"", "\r\n", "\n", "+a", "+a\n", "x\r\n", "$1\r\nab\r\n", "$99999999\r\n", "*99999999\r\n", "$-2\r\n", "$a\r\n", "$\r\n", "*2\r\n+a\r\n",
		strings.Repeat("*1\r\n", 10) + "+a\r\n", "+" + strings.Repeat("a", 5000) + "\r\n",
		"*100000\r\n" + strings.Repeat("+a\r\n", 100000),
	} {
		if m, err := readMessage(in); err == nil {
			t.Errorf("%.40q was read as %.40s", in, m)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n")
	f.Add("%1\r\n+a\r\n$-1\r\n")
	f.Fuzz(func(t *testing.T, in string) {
		m, err := readMessage(in)
		if err == nil && !strings.HasPrefix(in, string(m.respType)) {
			t.Fatalf("%q begins with %q", in, m.respType)
		}
		o := newFakeStore()
		cfg := testConfig
		cfg = testbed.WithDefaults(cfg)
		conn := &invalidationConn{cache: newCache(cfg, o.reader(), testLogger(t))}
		conn.handlePush(m)
	})
}

// readMessage parses in as if a node had sent it and closed the connection.
func readMessage(in string) (message, error) {
	w := &respConn{r: bufio.NewReader(strings.NewReader(in)), valuesLeft: maxValues}
	return w.readValue(0)
}

// String formats a message for tests.
func (m message) String() string {
	if m.list == nil && !strings.ContainsRune("*~>%|", rune(m.respType)) {
		return strconv.Quote(m.text)
	}
	var parts []string
	for _, v := range m.list {
		parts = append(parts, v.String())
	}
	return string(m.respType) + "[" + strings.Join(parts, " ") + "]"
}

func TestDialRejectsInvalidConfigurations(t *testing.T) {
	for name, c := range map[string]RedisConfig{
		"no address":           {},
		"cluster and sentinel": {RedisSettings: RedisSettings{Addresses: []string{"a:1"}, Cluster: true, SentinelMaster: "m"}},
		"two single servers":   {RedisSettings: RedisSettings{Addresses: []string{"a:1", "b:1"}}},
	} {
		if _, err := Dial(c); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestErrorsDoNotContainThePasswordOfRedis(t *testing.T) {
	s := testbed.StartRedis(t, "--requirepass", "right")
	r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}, Password: identity.NewSecret("canary-pw")}}))
	startRouter(t, r)
	_, err := r.Lookup(t.Context(), user(t, "alice"))
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "WRONGPASS") || strings.Contains(err.Error(), "canary") {
		t.Errorf("%v", err)
	}
	testkit.Eventually(t, "the status to contain the error", func() bool {
		return strings.Contains(r.invalidator.status().Error, "WRONGPASS")
	})
	if why := r.invalidator.status().Error; strings.Contains(why, "canary") {
		t.Error(why)
	}
}
