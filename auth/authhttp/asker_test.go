package authhttp

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/textproto"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

func alice() Question {
	return Question{Method: Plain, User: "alice", Password: secret("hunter2"), Attempt: 1, Client: netip.MustParseAddr("192.0.2.7")}
}

// right is an answer that lets everybody in, at 10.0.0.n.
func right(n int) string {
	return response("Auth-Status: OK", fmt.Sprintf("Auth-Server: 10.0.0.%d", n), "Auth-Port: 143")
}

// deadAddress is one that refuses connections.
func deadAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	return l.Addr().String()
}

func TestTheNextServerIsAskedWhenOneGivesNoUsableAnswer(t *testing.T) {
	t.Parallel()
	good := startAuthServer(t, always(right(2)))
	for name, first := range map[string]string{
		"refuses connections": deadAddress(t),
		"is silent":           startAuthServer(t, always("")).address,
		"speaks garbage":      startAuthServer(t, always("220 mail ESMTP\r\n")).address,
		"hangs up":            startAuthServer(t, always("Connection: close")).address,
		"has a page of error": startAuthServer(t, always("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")).address,
		"says OK twice":       startAuthServer(t, always(response("Auth-Status: OK", "Auth-Status: OK"))).address,
		"has half a header":   startAuthServer(t, always("HTTP/1.1 200 OK\r\nAuth-Status: OK\r\nConnection: close")).address,
		"has a long header":   startAuthServer(t, always(response("Auth-Status: OK", "X: "+strings.Repeat("x", maxHeader)))).address,
		"has an odd line":     startAuthServer(t, always(response("Auth-Status: OK", "no colon"))).address,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := to(good)
			cfg.URLs = append([]string{"http://" + first}, cfg.URLs...)
			cfg.Timeout = time.Second / 2
			answer, err := newAsker(t, cfg).Ask(t.Context(), alice())
			if err != nil || answer.Server != netip.MustParseAddrPort("10.0.0.2:143") {
				t.Errorf("%v, %v", answer, err)
			}
			cfg.URLs = cfg.URLs[:1]
			answer, err = newAsker(t, cfg).Ask(t.Context(), alice())
			if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) || answer != (Answer{}) {
				t.Errorf("alone it lets %v in, %v", answer, err)
			}
			if strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// Only a server that has seen the password can have meant its silence as an answer.
func TestAQuestionThatWasSentIsToldFromOneThatWasNot(t *testing.T) {
	silent, hangsUp := startAuthServer(t, always("")), startAuthServer(t, always("x"))
	for name, tc := range map[string]struct {
		urls []string
		sent bool
	}{
		"nobody listens":                {[]string{"http://127.0.0.1:1/"}, false},
		"silence":                       {[]string{"http://" + silent.address}, true},
		"no HTTP":                       {[]string{"http://" + hangsUp.address}, true},
		"no answer that can be used":    {[]string{"http://" + startAuthServer(t, always(response("X: y"))).address}, true},
		"to wait, for ever":             {[]string{"http://" + startAuthServer(t, always(response("Auth-Status: WAIT", "Auth-Wait: 1"))).address}, true},
		"silence, then nobody listens":  {[]string{"http://" + silent.address, "http://127.0.0.1:1/"}, true},
		"nobody listens, and no answer": {[]string{"http://127.0.0.1:1/", "http://" + hangsUp.address}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := to(silent)
			cfg.URLs, cfg.Timeout = tc.urls, 200*time.Millisecond
			_, err := newAsker(t, cfg).Ask(t.Context(), alice())
			if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnanswered) != tc.sent {
				t.Errorf("%v", err)
			}
		})
	}
}

// A server that repeats the password does so in vain.
func TestNoErrorHasAWordOfTheServers(t *testing.T) {
	const word = "2retnuh"
	for _, lines := range [][]string{
		{"Auth-Status: " + word}, {"Auth-Status: OK", "Auth-Server: " + word, "Auth-Port: 143"}, {"Auth-Status: OK", "Auth-Server: 10.0.0.1", "Auth-Port: " + word},
		{"Auth-Status: OK", "Auth-Server: 10.0.0.1", "Auth-Port: 143", "Auth-User: " + word + "\x7f"}, {"X: " + word, word + ": x"}, {word},
	} {
		_, err := newAsker(t, to(startAuthServer(t, always(response(lines...))))).Ask(t.Context(), alice())
		if err == nil || strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", lines, err)
		}
	}
}

func TestADenialIsTheEndOfTheQuestion(t *testing.T) {
	first := startAuthServer(t, always(response("Auth-Status: Account \x80 blocked", "Auth-Wait: 7")))
	second := startAuthServer(t, always(right(2)))
	_, err := newAsker(t, to(first, second)).Ask(t.Context(), alice())
	var denial *Denial
	if !errors.As(err, &denial) || denial.Wait != 7*time.Second || strings.Contains(err.Error(), "blocked") {
		t.Errorf("%v", err)
	}
	if n := len(second.questions()); n != 0 {
		t.Errorf("the next server was asked %d times", n)
	}
}

func TestAServerThatIsAwayIsLeftAlone(t *testing.T) {
	seen, logs := observer.New(zapcore.InfoLevel)
	silent := startAuthServer(t, always(""))
	cfg := to(silent)
	cfg.Timeout = 100 * time.Millisecond
	a, err := New(cfg, zap.New(seen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	began := time.Now()
	for range breaker.After {
		if _, err := a.Ask(t.Context(), alice()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	for range 1000 {
		if _, err := a.Ask(t.Context(), alice()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	// One question more is the gateway's own; after it one a second, and one of a client's.
	all := silent.questions()
	if n, most := len(all), breaker.After+3+2*int(time.Since(began)*5/4/breaker.For); n < breaker.After+1 || n > most {
		t.Errorf("%d questions, want %d at most", n, most)
	}
	if q := all[breaker.After]; q.header["Auth-Method"] != "none" || q.header["Auth-User"] != "" || q.header["Auth-Pass"] != "" {
		t.Errorf("the gateway's own question is %v", q.header)
	}
	silent.says(right(1))
	testbed.Within(t, testTime, "the server to be asked again", func() bool {
		_, err := a.Ask(t.Context(), alice())
		return err == nil
	})
	if logs.FilterMessage("auth server gives no answers").Len() != 1 || logs.FilterMessage("auth server answers again").Len() != 1 {
		t.Errorf("the log says %v", logs.All())
	}
}

// The gateway's own question finds the server back, and takes its time. The logins that
// come meanwhile are not refused.
func TestLoginsBesideTheQuestionThatFindsTheServerBackSucceed(t *testing.T) {
	o := testbed.NewOutage()
	isProbe := func(r *http.Request) bool { return r.Header.Get("Auth-Method") == none }
	server := httptest.NewServer(o.Handler(isProbe, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Auth-Status"], w.Header()["Auth-Server"], w.Header()["Auth-Port"] = []string{"OK"}, []string{"10.0.0.1"}, []string{"143"}
	}))
	t.Cleanup(server.Close)
	a, err := New(Config{URLs: []string{server.URL}, Timeout: testTime}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	o.Play(t, breaker.After+1, ErrUnavailable, func() error {
		_, err := a.Ask(t.Context(), alice())
		return err
	})
}

func TestOneUsersBrokenRecordDoesNotKeepOthersOut(t *testing.T) {
	s := startAuthServer(t, func(q asked) string {
		if q.header["Auth-User"] == "broken" {
			return "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
		}
		return right(1)
	})
	a := newAsker(t, to(s))
	broken := alice()
	broken.User = "broken"
	for range 3 * breaker.After {
		if _, err := a.Ask(t.Context(), broken); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := a.Ask(t.Context(), alice()); err != nil {
		t.Error(err)
	}
}

func TestALoginThatTheServerDoesNotAnswerKeepsOthersIn(t *testing.T) {
	s := startAuthServer(t, func(q asked) string {
		if q.header["Auth-User"] == "odd" {
			return "no HTTP\r\n\r\n"
		}
		return right(1)
	})
	cfg := to(s)
	cfg.Timeout = testTime
	a := newAsker(t, cfg)
	odd := alice()
	odd.User = "odd"
	for range 2 * breaker.After {
		if _, err := a.Ask(t.Context(), odd); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := a.Ask(t.Context(), alice()); err != nil {
		t.Error(err)
	}
}

// net/http closes the connection when a handler panics.
func TestAServerThatAnswersAllButTheGatewaysOwnQuestionIsAskedOn(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() || r.Header.Get("Auth-User") == "" {
			panic(http.ErrAbortHandler)
		}
		for name, value := range map[string]string{"Auth-Status": "OK", "Auth-Server": "10.0.0.1", "Auth-Port": "143"} {
			w.Header().Set(name, value)
		}
	}))
	t.Cleanup(s.Close)
	a := newAsker(t, Config{URLs: []string{s.URL}, Timeout: testTime})
	for range breaker.After + 1 {
		if _, err := a.Ask(t.Context(), alice()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	broken.Store(false)
	testbed.Within(t, testTime, "a login to be asked about", func() bool {
		_, err := a.Ask(t.Context(), alice())
		return err == nil
	})
	for range 100 {
		if _, err := a.Ask(t.Context(), alice()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAClientThatLeavesIsNoFailureOfTheServer(t *testing.T) {
	silent := startAuthServer(t, always(""))
	a := newAsker(t, to(silent))
	for range 3 * breaker.After {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		if _, err := a.Ask(ctx, alice()); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		cancel()
	}
	silent.says(right(1))
	if _, err := a.Ask(t.Context(), alice()); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreUsedAgain(t *testing.T) {
	s := startAuthServer(t, always(strings.Replace(right(1), "Content-Length: 0", "Content-Length: 5", 1)+"hello"))
	a := newAsker(t, to(s))
	for range 20 {
		if _, err := a.Ask(t.Context(), alice()); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.connections(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestABodyIsNotWaitedFor(t *testing.T) {
	for name, server := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for chunk := make([]byte, 1<<20); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		},
		"silent": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header()["Auth-Status"] = []string{"OK"}
				server(w, r)
			}))
			defer s.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a := newAsker(t, Config{URLs: []string{s.URL}, Timeout: time.Hour}) // which nobody waits for
			if _, err := a.Ask(t.Context(), alice()); err != nil {
				t.Error(err)
			}
			runtime.ReadMemStats(&after)
			if grown := after.TotalAlloc - before.TotalAlloc; name == "endless" && grown > 16<<20 {
				t.Errorf("%d bytes allocated", grown)
			}
		})
	}
}

func TestAServerThatOnlySaysWAITIsNoAnswer(t *testing.T) {
	t.Parallel()
	s := startAuthServer(t, always(response("Auth-Status: WAIT")))
	began := time.Now()
	_, err := newAsker(t, to(s)).Ask(t.Context(), alice())
	if n := len(s.questions()); !errors.Is(err, ErrUnavailable) || n != 1+maxWaits || time.Since(began) < maxWaits*time.Second {
		t.Errorf("after %v and %d questions: %v", time.Since(began), n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := newAsker(t, to(s)).Ask(ctx, alice()); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a client that leaves meanwhile: %v", err)
	}
}

func TestOverTLSBothSidesAreVerified(t *testing.T) {
	t.Parallel()
	ca, other := testbed.NewCA(t), testbed.NewCA(t)
	pair := func(ca *testbed.CA, name string) tls.Certificate {
		p, err := tls.LoadX509KeyPair(ca.Issue(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Auth-Status"] = []string{"OK"}
	}))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair(ca, "127.0.0.1")}, ClientCAs: ca.Pool, ClientAuth: tls.RequireAndVerifyClientCert}
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.StartTLS()
	defer s.Close()
	client := []tls.Certificate{pair(ca, "gateway")}
	for name, c := range map[string]struct {
		tls *tls.Config
		ok  bool
	}{
		"as it should be":          {&tls.Config{RootCAs: ca.Pool, Certificates: client}, true},
		"another authority":        {&tls.Config{RootCAs: other.Pool, Certificates: client}, false},
		"the system's authorities": {nil, false},
		"no certificate of ours":   {&tls.Config{RootCAs: ca.Pool}, false},
		"a stranger's certificate": {&tls.Config{RootCAs: ca.Pool, Certificates: []tls.Certificate{pair(other, "gateway")}}, false},
	} {
		_, err := newAsker(t, Config{URLs: []string{s.URL + "/auth"}, TLS: testbed.Fixed(c.tls)}).Ask(t.Context(), alice())
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	plain := startAuthServer(t, always(right(1)))
	_, err := newAsker(t, Config{URLs: []string{"https://" + plain.address}, Timeout: time.Second / 2}).Ask(t.Context(), alice())
	if !errors.Is(err, ErrUnavailable) || len(plain.questions()) != 0 {
		t.Errorf("a server without TLS: %v", err)
	}
}

func TestANegativeAnswerNeedsAWordAndAPositiveOneNeedsOK(t *testing.T) {
	at := []string{"Auth-Server: 10.0.0.1", "Auth-Port: 143"}
	for name, c := range map[string]struct {
		lines []string
		want  Answer
		err   error
	}{
		"without a backend":    {[]string{"Auth-Status: OK"}, Answer{}, nil},
		"an IPv6 backend":      {[]string{"Auth-Status: OK", "Auth-Server: 2001:db8::1", "Auth-Port: 0993"}, Answer{Server: netip.MustParseAddrPort("[2001:db8::1]:993")}, nil},
		"an IPv4 one as IPv6":  {[]string{"Auth-Status: OK", "Auth-Server: ::ffff:10.0.0.1", "Auth-Port: 143"}, Answer{Server: netip.MustParseAddrPort("10.0.0.1:143")}, nil},
		"overrides":            {append(at, "Auth-Status: OK", "Auth-User: a*m", "Auth-Pass: \xe4"), Answer{netip.MustParseAddrPort("10.0.0.1:143"), "a*m", secret("\xe4")}, nil},
		"no status":            {at, Answer{}, ErrUnavailable},
		"an empty status":      {append(at, "Auth-Status:"), Answer{}, ErrUnavailable},
		"a zone":               {[]string{"Auth-Status: OK", "Auth-Server: fe80::1%eth0", "Auth-Port: 143"}, Answer{}, ErrUnavailable},
		"a unix socket":        {[]string{"Auth-Status: OK", "Auth-Server: unix:/run/imap", "Auth-Port: 143"}, Answer{}, ErrUnavailable},
		"port 0":               {[]string{"Auth-Status: OK", at[0], "Auth-Port: 0"}, Answer{}, ErrUnavailable},
		"a signed port":        {[]string{"Auth-Status: OK", at[0], "Auth-Port: +143"}, Answer{}, ErrUnavailable},
		"a control in a name":  {append(at, "Auth-Status: OK", "Auth-User: a\x01b"), Answer{}, ErrUnavailable},
		"DEL in a password":    {append(at, "Auth-Status: OK", "Auth-Pass: a\x7f"), Answer{}, ErrUnavailable},
		"CR in a password":     {append(at, "Auth-Status: OK", "Auth-Pass: a\rb"), Answer{}, ErrUnavailable},
		"an empty name":        {append(at, "Auth-Status: OK", "Auth-User:"), Answer{}, ErrUnavailable},
		"an empty password":    {append(at, "Auth-Status: OK", "Auth-Pass: "), Answer{}, ErrUnavailable},
		"a long password":      {append(at, "Auth-Status: OK", "Auth-Pass: "+strings.Repeat("a", maxOverride+1)), Answer{}, ErrUnavailable},
		"two servers":          {append(at, "Auth-Status: OK", "Auth-Server: 10.0.0.2"), Answer{}, ErrUnavailable},
		"two ways to be right": {append(at, "Auth-Status: no", "Auth-Status: OK"), Answer{}, ErrUnavailable},
		"a word":               {append(at, "Auth-Status: OK!"), Answer{}, ErrDenied},
	} {
		s := startAuthServer(t, always(response(c.lines...)))
		got, err := newAsker(t, to(s)).Ask(t.Context(), alice())
		if got != c.want || !errors.Is(err, c.err) || errors.Is(err, ErrDenied) && errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestAuthWaitIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "3": 3 * time.Second, "0": 0, "soon": 0, "-1": 0, "1.5": 0, "30": maxWait, "31": maxWait,
		"4294967296": maxWait, strings.Repeat("9", 40): maxWait, "007": 7 * time.Second,
	} {
		if got := waitOf(text); got != want {
			t.Errorf("%q is %v, not %v", text, got, want)
		}
	}
}

func TestHeadersAndURLsThatWouldBreakTheProtocolAreRefused(t *testing.T) {
	for _, bad := range [][2]string{
		{"", "x"}, {"X Y", "x"}, {"X:", "x"}, {"X\r\nY", "x"}, {"Host", "x"}, {"auth-user", "x"}, {"AUTH-SSL-VERIFY", "SUCCESS"},
		{"proxy-protocol-addr", "x"}, {"client-ip", "x"}, {"Transfer-Encoding", "chunked"}, {"X", "a\r\nAuth-User: b"}, {"X", "a\x00"},
	} {
		if _, err := New(Config{URLs: []string{"http://a"}, Headers: header(bad[0], bad[1])}, zap.NewNop()); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, bad := range []string{"", "/auth", "a:80/auth", "ftp://a/", "http://", "http://u:p@a/", "http://a/#x", "unix:/run/x", "http://a/\n"} {
		if _, err := New(Config{URLs: []string{bad}}, zap.NewNop()); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := New(Config{URLs: make([]string, MaxURLs+1)}, zap.NewNop()); err == nil {
		t.Error("too many servers are taken")
	}
}

func FuzzAuthHTTPQuestion(f *testing.F) {
	f.Add("alice@example.org", "pa%ss word")
	f.Add("a\r\nAuth-Status: OK", "\x00\x7f\xff")
	f.Fuzz(func(t *testing.T, user, password string) {
		h := (&Asker{}).header(Question{User: user, Password: identity.NewSecret(password)})
		for name, want := range map[string]string{"Auth-User": user, "Auth-Pass": password} {
			got, err := url.PathUnescape(h[name][0])
			if err != nil || got != want || strings.ContainsFunc(h[name][0], func(r rune) bool { return r <= ' ' || r == 0x7f }) {
				t.Errorf("%s of %q is %q, which is %q, %v", name, want, h[name][0], got, err)
			}
		}
	})
}

func FuzzAuthHTTPAnswer(f *testing.F) {
	for _, lines := range []string{
		"Auth-Status: OK\r\nAuth-Server: 10.0.0.1\r\nAuth-Port: 143\r\nAuth-User: x\r\nAuth-Pass: y", "Auth-Status: WAIT\r\nAuth-Wait: 3", "Auth-Status: no",
	} {
		f.Add([]byte(lines + "\r\n\r\n"))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(string(raw)))).ReadMIMEHeader()
		if err != nil {
			return
		}
		r, err := read(http.Header(h))
		if err != nil {
			if r != (reply{}) {
				t.Errorf("%+v with %v", r, err)
			}
			return
		}
		a := r.answer
		if (r.denial == nil && r.again == 0) != (h.Get("Auth-Status") == "OK") || r.again < 0 || r.again > maxWait {
			t.Errorf("%+v of %q", r, h)
		}
		if strings.ContainsAny(a.User+a.Password.Reveal(), "\x00\r\n") || a.Server.IsValid() && (a.Server.Port() == 0 || a.Server.Addr().Zone() != "") {
			t.Errorf("%+v", a)
		}
	})
}
