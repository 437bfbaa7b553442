package tests

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/upstream"
)

// Vulnerabilities of other servers, proxies and libraries, by CVE. This file has those of
// the login, cves_mux_test.go those of a session, cves_http_test.go those of auth servers,
// and cves_linux_test.go one about the kernel's limits.

// totalAlloc returns the bytes the process has allocated so far, an upper bound of what it
// holds.
func totalAlloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// heapInUse returns the heap in use after a garbage collection.
func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // twice, to empty sync.Pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// startStubGateway starts a gateway with a backend that accepts every login.
func startStubGateway(t *testing.T) *gateway {
	t.Helper()
	return startGateway(t, testbed.NewCA(t), singleBackend(plainBackend(startStub(t, nil).Addr())))
}

// sendExpect sends bytes and checks that the next response begins with want.
func sendExpect(t *testing.T, c *RawClient, text, want string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatalf("%.60q: %v", text, err)
	}
	if got, err := c.Read(); err != nil || !strings.HasPrefix(got.Text, want) {
		t.Fatalf("%.60q: %.200q, %v; want %q", text, got.Text, err, want)
	}
}

// isRejected reports whether a response refuses a command or the connection as malformed.
func isRejected(r Response) bool {
	return strings.Contains(r.Text, "BAD ") || strings.Contains(r.Text, "[TOOBIG]") || strings.HasPrefix(r.Text, "* BYE ")
}

// Dovecot CVE-2026-27857: 4,000 opening parentheses before the login held a megabyte.
func TestNestedParenthesesBeforeTheLoginHoldNoMemory(t *testing.T) {
	g := startStubGateway(t)
	var conns []*RawClient
	for range 50 {
		conns = append(conns, mustDial(t, g.endpoint(event.NoTLS), ""))
	}
	before := totalAlloc()
	for _, c := range conns {
		for _, command := range []string{"a NOOP ", "a ID ", "a LOGIN ", "a FROB ("} {
			got := command + strings.Repeat("(", 4000)
			if _, err := io.WriteString(c, got); err != nil {
				t.Fatal(err)
			}
			sendExpect(t, c, "\r\n", "a BAD ")
			if command == "a LOGIN " { // the third bad command ends the connection
				break
			}
		}
	}
	// 50 connections with 12,000 octets each, and the test's own copies of them.
	if grown := totalAlloc() - before; grown > 16<<20 {
		t.Errorf("%d octets were allocated", grown)
	}
}

// Dovecot CVE-2025-59028: invalid base64 ended the logins of other clients.
func TestBadBase64LeavesOtherLoginsIntact(t *testing.T) {
	g := startStubGateway(t)
	var waiting []*RawClient
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		c := mustDial(t, g.endpoint(event.NoTLS), "")
		sendExpect(t, c, "a AUTHENTICATE "+mechanism+"\r\n", "+ ")
		waiting = append(waiting, c)
	}
	for _, bad := range []string{"!", "=", "====", "YQ", "YQ=", "Y Q==", "YQ==YQ==", "\xff\xfe", "AA\x00A", strings.Repeat("A", 8001), strings.Repeat("!", 8001)} {
		for _, format := range []string{"a AUTHENTICATE PLAIN %s\r\n", "a AUTHENTICATE LOGIN %s\r\n", "a AUTHENTICATE PLAIN\r\n%s\r\n", "a AUTHENTICATE LOGIN\r\n%s\r\n"} {
			c := mustDial(t, g.endpoint(event.NoTLS), "")
			if _, err := fmt.Fprintf(c, format+"!\r\n!\r\n", bad); err != nil { // "=" is an empty name; a password follows
				t.Fatal(err)
			}
			for {
				got, err := c.Read()
				if err != nil || strings.Contains(got.Text, " OK") {
					t.Fatalf(format+": %q, %v", bad, got.Text, err)
				}
				if !strings.HasPrefix(got.Text, "+") {
					break
				}
			}
			_ = c.Close()
		}
	}
	coded := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) + "\r\n" }
	sendExpect(t, waiting[0], coded("\x00alice\x00"+password), "a OK ")
	sendExpect(t, waiting[1], coded("bob"), "+ ")
	sendExpect(t, waiting[1], coded(password), "a OK ")
}

// runSCRAM runs SCRAM-SHA-256 with a GS2 header and a channel binding, and returns the
// response.
func runSCRAM(t *testing.T, c *RawClient, mechanism, header, binding string) string {
	t.Helper()
	code := base64.StdEncoding.EncodeToString
	bare := "n=alice@example.org,r=fyko+d2lbbFgONRv9qkxdawL"
	if _, err := fmt.Fprintf(c, "a AUTHENTICATE %s %s\r\n", mechanism, code([]byte(header+bare))); err != nil {
		t.Fatal(err)
	}
	got, err := c.Read()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(got.Text, "+ ") {
		return got.Text
	}
	challenge, err := base64.StdEncoding.DecodeString(got.Text[2:])
	if err != nil {
		t.Fatal(err)
	}
	part := map[string]string{}
	for _, p := range strings.Split(string(challenge), ",") {
		part[p[:1]] = p[2:]
	}
	salt, err := base64.StdEncoding.DecodeString(part["s"])
	if err != nil {
		t.Fatal(err)
	}
	rounds, err := strconv.Atoi(part["i"])
	if err != nil {
		t.Fatal(err)
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	key := mac(salted, "Client Key")
	stored := sha256.Sum256(key)
	final := "c=" + binding + ",r=" + part["r"]
	proof := mac(stored[:], bare+","+string(challenge)+","+final)
	for i := range proof {
		proof[i] ^= key[i]
	}
	if _, err := io.WriteString(c, code([]byte(final+",p="+code(proof)))+"\r\n"); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := c.Read()
		if err != nil {
			t.Fatalf("binding %.40q: %v", binding, err)
		}
		if !strings.HasPrefix(got.Text, "+") {
			return got.Text
		}
		if _, err := io.WriteString(c, "\r\n"); err != nil { // accepts the server signature
			t.Fatal(err)
		}
	}
}

// cyrus-sasl CVE-2026-132138, Dovecot CVE-2026-33603: the channel binding in the client's
// final message was not verified if the GS2 header declares none.
func TestChannelBindingMatchesTheGS2Header(t *testing.T) {
	hash, err := auth.Hash("SCRAM-SHA-256", identity.NewSecret(password))
	if err != nil {
		t.Fatal(err)
	}
	passwdFile := writeText(t, "passwd", "alice@example.org:"+hash+"\n")
	offering := func(mechanisms ...string) *gateway {
		backend := plainBackend(startStub(t, nil).Addr()) + masterLogin(t, master, password, upstream.AuthzidStyle)
		return startGateway(t, testbed.NewCA(t), singleBackend(backend), fmt.Sprintf("auth: {methods: [file], file: {path: %q}, mechanisms: [%s], scram_secret_file: %q}",
			passwdFile, strings.Join(mechanisms, ", "), writeText(t, "scram", "a secret of all gateways")))
	}
	const unbound, bound = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
	both, one := offering(bound, unbound), offering(unbound)
	code := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	huge := strings.Repeat("x", 1<<10)
	for _, c := range []struct {
		g                          *gateway
		mechanism, header, binding string
		right                      bool
	}{
		{both, unbound, "n,,", code("n,,"), true},
		{both, unbound, "n,,", code("n,,x"), false},
		{both, unbound, "n,,", code("n,,") + code("x"), false},
		{both, unbound, "n,,", code("n,," + huge), false},
		{both, unbound, "n,,", code("n,," + huge + huge), false},
		{both, unbound, "n,,", code("n,,\x00"), false},
		{both, unbound, "n,,", "", false},
		{both, unbound, "n,,", "!", false},
		{both, unbound, "n,,", code("n,"), false},
		{both, unbound, "n,,", code("y,,"), false},
		{both, unbound, "n,,", code("p=tls-exporter,,"), false},
		{both, unbound, "y,,", code("y,,"), false}, // the gateway offers -PLUS
		{one, unbound, "y,,", code("y,,"), true},
		{one, unbound, "y,,", code("y,,x"), false},
		{one, unbound, "y,,", code("y,," + huge), false},
		{one, unbound, "y,,", "", false},
		{one, unbound, "y,,", code("n,,"), false},
		{both, bound, "p=tls-exporter,,", code("p=tls-exporter,,"), false},
		{both, bound, "p=tls-exporter,,", code("p=tls-exporter,," + huge), false},
		{both, bound, "p=tls-exporter,,", "", false},
		{both, bound, "p=tls-exporter,,", code("n,,"), false},
		{both, bound, "n,,", code("n,,"), false},
		{both, bound, "p=,,", code("p=,,"), false},
	} {
		t.Run(fmt.Sprintf("%s %s %.20s", c.mechanism, c.header, c.binding), func(t *testing.T) {
			t.Parallel() // refusals are delayed
			got := runSCRAM(t, mustDial(t, c.g.endpoint(event.ImplicitTLS), ""), c.mechanism, c.header, c.binding)
			if strings.HasPrefix(got, "a OK ") != c.right || !c.right && !strings.HasPrefix(got, "a NO ") && !strings.HasPrefix(got, "a BAD ") {
				t.Errorf("binding %.60q: %.100q", c.binding, got)
			}
		})
	}
}

// Cyrus CVE-2024-34055: an unbounded number of literals in one command, all kept in memory.
func TestManyLiteralsBeforeTheLoginAreRefused(t *testing.T) {
	g := startStubGateway(t)
	before := totalAlloc()
	for _, command := range []string{"a LOGIN", "a ID", "a NOOP", "a FROB"} {
		c := mustDial(t, g.endpoint(event.NoTLS), "")
		_, _ = io.WriteString(c, command+strings.Repeat(" {1+}\r\nx", 10_000)+"\r\n") // the connection may end before
		if got, err := c.Read(); err == nil && !isRejected(got) {
			t.Errorf("%s: %q", command, got.Text)
		}
		_ = c.Close()
	}
	if grown := totalAlloc() - before; grown > 8<<20 {
		t.Errorf("%d octets were allocated", grown)
	}
}

// nginx's mail proxy and others: literal lengths that overflow, and octets after a literal.
func TestLiteralLengthsAreNumbersInEveryState(t *testing.T) {
	g := startGateway(t, testbed.NewCA(t), singleBackend(plainBackend(startStub(t, nil).Addr())+muxMode(event.ModeResume, "")))
	for _, size := range []string{"4294967296", "4294967299", "9223372036854775808", "18446744073709551616", "18446744073709551619",
		"99999999999999999999999999", "-1", "+", "", "0x3", "03", " 3", "3 ", "3-", "++", "1e3"} {
		for _, mark := range []string{"", "+"} {
			for _, login := range []string{"", "l LOGIN alice " + password + "\r\n"} {
				c := mustDial(t, g.endpoint(event.NoTLS), "")
				if login != "" {
					sendExpect(t, c, login, "l OK ")
				}
				text := "a LOGIN {" + size + mark + "}\r\n"
				if login != "" {
					text = "a CREATE {" + size + mark + "}\r\n"
				}
				_, _ = io.WriteString(c, text+"abc\r\n")
				if got, err := c.Read(); err == nil && !isRejected(got) {
					t.Errorf("%q: %q", text, got.Text)
				}
				_ = c.Close()
			}
		}
	}
	// Octets directly after a literal belong neither to it nor to another argument.
	for _, text := range []string{"a LOGIN {3+}\r\nabcX " + password + "\r\n", "a LOGIN {3+}\r\nabc{2+}\r\npw\r\n", "a LOGIN {3+}\r\nabcpw\r\n", "a LOGIN abc {2+}\r\npwX\r\n"} {
		c := mustDial(t, g.endpoint(event.NoTLS), "")
		_, _ = io.WriteString(c, text)
		if got, err := c.Read(); err == nil && !isRejected(got) {
			t.Errorf("%q: %q", text, got.Text)
		}
		_ = c.Close()
	}
	c := mustDial(t, g.endpoint(event.NoTLS), "")
	sendExpect(t, c, "a LOGIN {3}\r\n", "+ ")
	sendExpect(t, c, "abcX "+password+"\r\n", "a BAD ")
	sendExpect(t, c, "b LOGIN {5+}\r\nalice {2+}\r\npw\r\n", "b OK ")
	sendExpect(t, c, "c CREATE {3}\r\n", "+ ")
	if _, err := io.WriteString(c, "abcX\r\n"); err != nil {
		t.Fatal(err)
	}
	sendExpect(t, c, "d NOOP\r\n", "c ") // the backend's response
	if got, err := c.Read(); err != nil || !strings.HasPrefix(got.Text, "d OK ") {
		t.Errorf("the next command: %q, %v", got.Text, err)
	}
}

// PgBouncer CVE-2026-6665: an oversized or unexpected challenge of a backend during the
// login. No part of it reaches a client, and the login fails.
func TestAHostileBackendsChallengesEndTheLogin(t *testing.T) {
	const greeting = "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=SCRAM-SHA-256] ready\r\n"
	flood := strings.Repeat("A", 1<<20)
	for name, response := range map[string]string{
		"a challenge of a megabyte":      "+ " + flood + "\r\n",
		"a challenge without end":        "+ " + flood,
		"a further challenge":            "+ \r\n+ cj1meWtv\r\n",
		"a challenge of SCRAM":           "+ cj14LHM9QUFBQSxpPTIxNDc0ODM2NDc=\r\n",
		"challenges without end":         strings.Repeat("+ AAAA\r\n", 1<<17),
		"untagged responses without end": strings.Repeat("* OK [ALERT] AAAA\r\n", 1<<17),
		"a literal of 4 GB":              "* ID (\"name\" {4294967295}\r\n" + flood,
		"parentheses":                    "* LIST " + strings.Repeat("(", 1<<20) + "\r\n",
	} {
		b := testkit.StartIMAP(t, func(conn *testkit.Conn) {
			if _, err := io.WriteString(conn, greeting); err == nil {
				_, _ = conn.R.ReadString('\n')
				_, _ = io.WriteString(conn, response)
				_ = conn.Conn.(*net.TCPConn).CloseWrite()
				_, _ = io.Copy(io.Discard, conn.R) // until the gateway closes
			}
		})
		g := startGateway(t, testbed.NewCA(t), singleBackend(plainBackend(b.Addr())))
		before := totalAlloc()
		c := mustDial(t, g.endpoint(event.NoTLS), "")
		sendExpect(t, c, "a LOGIN alice "+password+"\r\n", "a NO [UNAVAILABLE] ")
		if grown := totalAlloc() - before; grown > 8<<20 { // the backend's own copies included
			t.Errorf("%s: %d octets were allocated", name, grown)
		}
		_ = c.Close()
		g.stop()
	}
}
