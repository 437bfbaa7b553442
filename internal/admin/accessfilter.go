package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"imapgate/internal/identity"
)

const (
	// maxGuesses is how many wrong tokens an address may send in a window.
	maxGuesses  = 10
	guessWindow = time.Minute
	// maxGuessers bounds the addresses that are counted separately. Further ones share
	// one count, so a flood of addresses allows no more guesses than one.
	maxGuessers = 1024
)

// accessFilter is the access control of the admin address.
type accessFilter struct {
	// Set once.
	endpoints   map[string]endpoint
	token       identity.Secret
	tokenless   bool // reads need no token
	hostNames   []string
	crossOrigin *http.CrossOriginProtection

	mu sync.Mutex
	// Guarded by mu.
	guesses     map[netip.Prefix]int // wrong tokens in this window; at most maxGuessers + 1
	windowStart time.Time            // start of the window
}

func newAccessFilter(cfg Settings, endpoints map[string]endpoint) *accessFilter {
	g := &accessFilter{endpoints: endpoints, token: cfg.Token, tokenless: cfg.Token.IsZero(), hostNames: []string{"localhost"}, guesses: make(map[netip.Prefix]int),
		crossOrigin: http.NewCrossOriginProtection()}
	if host, _, err := net.SplitHostPort(cfg.Address); err == nil {
		g.hostNames = append(g.hostNames, host)
	}
	if hostname, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(hostname, ".")
		g.hostNames = append(g.hostNames, hostname, short)
	}
	return g
}

// ServeHTTP implements http.Handler. The cheapest checks, and those that reveal
// least, come first.
func (a *accessFilter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := connOf(r)
	if !conn.beginRequest() {
		return
	}
	defer conn.endRequest()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	endpoint, found := a.endpoints[r.URL.Path]
	change := endpoint.changes[r.Method]
	isRead := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !a.isOwnHost(r.Host):
		writeText(w, http.StatusMisdirectedRequest, "this server does not have that name")
	case !isRead && change == nil:
		h.Set("Allow", endpoint.allowedMethods())
		writeText(w, http.StatusMethodNotAllowed, "only "+endpoint.allowedMethods())
	case r.Method != http.MethodPost && r.ContentLength != 0, r.ContentLength > maxBody: // also -1, a chunked body
		h.Set("Connection", "close")
		writeText(w, http.StatusRequestEntityTooLarge, "the body is too large; only POST may have one")
	case r.URL.Path == pathHealth || r.URL.Path == pathReady:
		endpoint.get(w, r)
	default:
		if status := a.authenticate(r); status != http.StatusOK {
			h.Set("WWW-Authenticate", "Bearer")
			writeText(w, status, http.StatusText(status))
		} else if !found {
			writeText(w, http.StatusNotFound, "not found; the paths are "+strings.Join(slices.Sorted(maps.Keys(a.endpoints)), ", "))
		} else if !conn.acquireRequestSlot() {
			h.Set("Retry-After", "1")
			writeText(w, http.StatusServiceUnavailable, "too many requests in progress")
		} else if isRead {
			endpoint.get(w, r)
		} else {
			a.serveChange(w, r, change)
		}
	}
}

// serveChange handles a request that changes something. It refuses requests of other
// sites' web pages: a browser does not send our token on its own, nor JSON without a
// preflight request.
func (a *accessFilter) serveChange(w http.ResponseWriter, r *http.Request, change http.HandlerFunc) {
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch {
	case a.tokenless:
		writeText(w, http.StatusForbidden, "changes need a token: set admin.token_file")
	case a.crossOrigin.Check(r) != nil:
		writeText(w, http.StatusForbidden, "this request comes from another site")
	case r.Method == http.MethodPost && !strings.EqualFold(strings.TrimSpace(mediaType), "application/json"):
		writeText(w, http.StatusUnsupportedMediaType, "only application/json")
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		change(w, r)
	}
}

// isOwnHost reports whether host is a name of this server. With DNS rebinding, a
// page of evil.example, whose name resolves to 127.0.0.1, makes a browser send
// requests under that name. An IP address cannot be rebound.
func (a *accessFilter) isOwnHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	return slices.ContainsFunc(a.hostNames, func(name string) bool { return name != "" && strings.EqualFold(host, name) })
}

// authenticate returns 200, 401 without a valid token, or 429 for more wrong ones
// than allowed. A correct token is always accepted: all of loopback is one address,
// and any process there could lock the operator out. Guessing despite the 429 is
// hopeless: a token has at least 16 characters.
func (a *accessFilter) authenticate(r *http.Request) int {
	if a.tokenless {
		return http.StatusOK
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return http.StatusUnauthorized // no token, so not a guess
	}
	// Hashes have equal lengths, so the time does not reveal the token's length.
	sum, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(a.token.Reveal()))
	if subtle.ConstantTimeCompare(sum[:], want[:]) == 1 {
		return http.StatusOK
	}
	prefix := clientNet(r.RemoteAddr)
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.Sub(a.windowStart) >= guessWindow {
		clear(a.guesses)
		a.windowStart = now
	}
	if _, known := a.guesses[prefix]; !known && len(a.guesses) >= maxGuessers {
		prefix = netip.Prefix{}
	}
	if a.guesses[prefix] >= maxGuesses {
		return http.StatusTooManyRequests
	}
	a.guesses[prefix]++
	return http.StatusUnauthorized
}

// clientNet returns the network under which a client is counted: an IPv4 address, or
// the IPv6 network of one customer.
func clientNet(remoteAddr string) netip.Prefix {
	peer, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	return identity.AddrPrefix(peer.Addr())
}
