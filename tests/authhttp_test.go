package tests

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// nginxAuthServer is a typical auth server for nginx: it maps a user and password to a
// backend and a login name there.
type nginxAuthServer struct {
	east, west string // addresses
	waits      atomic.Int32
}

// ServeHTTP finds the headers by name, as every language's server does.
func (a *nginxAuthServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeaders := func(pairs ...string) {
		for i := 0; i < len(pairs); i += 2 {
			w.Header().Set(pairs[i], pairs[i+1])
		}
	}
	at := func(address string, more ...string) {
		host, port, _ := net.SplitHostPort(address)
		setHeaders(append([]string{"Auth-Status", "OK", "Auth-Server", host, "Auth-Port", port}, more...)...)
	}
	wrong := []string{"Auth-Status", "Invalid login in the script", "Auth-Wait", "1"}
	if r.Header.Get("X-Auth-Key") != "s3cret" || r.Header.Get("Auth-Protocol") != "imap" {
		http.Error(w, "unknown proxy", http.StatusForbidden)
		return
	}
	switch r.Header.Get("Auth-User") + " " + r.Header.Get("Auth-Pass") {
	case "alice hers":
		at(a.east)
	case "bob his%20own%25":
		at(a.west, "Auth-User", "bobby", "Auth-Pass", "store")
	case "carol cool":
		if a.waits.Add(1)%2 == 1 {
			setHeaders("Auth-Status", "WAIT", "Auth-Wait", "1")
			return
		}
		at(a.east, "Auth-User", "alice", "Auth-Pass", "hers")
	case "dave lost": // to a server that is no backend of the gateway
		at("127.0.0.1:1")
	case "eve broken":
		http.Error(w, "division by zero", http.StatusInternalServerError)
	default:
		setHeaders(wrong...)
	}
}

func TestNginxAuthServerWorksUnchanged(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	east := testbed.StartDovecot(t, testbed.DovecotConfig{CA: ca, Users: map[string]string{"alice": "hers"}})
	west := testbed.StartDovecot(t, testbed.DovecotConfig{CA: ca, Users: map[string]string{"bobby": "store"}})
	script := &nginxAuthServer{east: east.Plain, west: west.Plain}
	server := httptest.NewServer(script)
	t.Cleanup(server.Close)

	nginx := testbed.StartNginx(t, 1, func(a []string) string {
		return fmt.Sprintf("auth_http %s/auth; auth_http_header X-Auth-Key s3cret; imap_auth plain;\nserver { listen %s; protocol imap; }", server.URL, a[0])
	})
	b := startProcess(t, ca, fmt.Sprintf(`backends:
  east: {address: %q, tls: none}
  west: {address: %q, tls: none}
auth: {methods: [http], http: {urls: ["http://127.0.0.1:1/auth", %q], headers: {X-Auth-Key: s3cret}}}
routing: {source: http}`, east.Plain, west.Plain, server.URL+"/auth"))

	for _, c := range []struct {
		user, password string
		gateway        string // response of the gateway
		nginx          string // response of nginx; "" skips it, because it would connect anywhere
	}{
		{"alice", "hers", " OK [CAPABILITY ", " OK "},
		{"bob", "his own%", " OK [CAPABILITY ", " OK "},
		{"carol", "cool", " OK [CAPABILITY ", " OK "},
		{"alice", "wrong", " NO [AUTHENTICATIONFAILED] Authentication failed.\n", "NO Invalid login"},
		{"mallory", "hers", " NO [AUTHENTICATIONFAILED] Authentication failed.\n", "NO Invalid login"},
		{"dave", "lost", " NO [UNAVAILABLE] ", ""},
		{"eve", "broken", " NO [UNAVAILABLE] ", "* BAD internal server error"},
	} {
		command := fmt.Sprintf("LOGIN %s %q", c.user, c.password)
		start := time.Now()
		got, err := mustDial(t, b.endpoint("implicit"), "").Do(command)
		if err != nil || !strings.Contains(formatResponses(got), c.gateway) || strings.Contains(formatResponses(got), "script") {
			t.Errorf("%s: %v, %v", command, got, err)
		}
		if elapsed := time.Since(start); c.password == "wrong" && elapsed < time.Second {
			t.Errorf("%s: refused after %v", command, elapsed)
		}
		if c.nginx == "" {
			continue
		}
		client, err := Connect(nginx[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Read(); err != nil {
			t.Fatal(err)
		}
		got, err = client.Do(command)
		if !strings.Contains(formatResponses(got), c.nginx) {
			t.Errorf("nginx: %s: %v, %v", command, got, err)
		}
	}
}
