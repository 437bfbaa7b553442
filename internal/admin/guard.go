package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"imapgate/internal/identity"
)

const (
	// guesses is how many wrong tokens an address may send in a window.
	guesses = 10
	window  = time.Minute
	// maxGuessers bounds the addresses remembered; beyond it, strangers share
	// one count, so a flood of addresses buys no more guesses than one.
	maxGuessers = 1024
)

// guard lets only requests through that may be answered.
type guard struct {
	// Set once.
	pages  map[string]page
	token  identity.Secret
	open   bool // no token is asked for by those who look
	names  []string
	origin *http.CrossOriginProtection

	mu sync.Mutex
	// Guarded by mu.
	wrong map[netip.Prefix]int // wrong tokens in this window; at most maxGuessers + 1
	since time.Time            // when the window began
}

func newGuard(cfg Config, pages map[string]page) *guard {
	g := &guard{pages: pages, token: cfg.Token, open: cfg.Token.IsZero(), names: []string{"localhost"}, wrong: make(map[netip.Prefix]int),
		origin: http.NewCrossOriginProtection()}
	if host, _, err := net.SplitHostPort(cfg.Address); err == nil {
		g.names = append(g.names, host)
	}
	if own, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(own, ".")
		g.names = append(g.names, own, short)
	}
	return g
}

// ServeHTTP implements http.Handler. The order is from what costs least and
// tells least.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := connectionOf(r)
	if !conn.begin() {
		return
	}
	defer conn.answered()
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cache-Control", "no-store")
	page, found := g.pages[r.URL.Path]
	changes := page.changes[r.Method]
	looks := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !g.knows(r.Host):
		say(w, http.StatusMisdirectedRequest, "this server is not known by that name")
	case !looks && changes == nil:
		h.Set("Allow", page.allowed())
		say(w, http.StatusMethodNotAllowed, "only "+page.allowed())
	case r.Method != http.MethodPost && r.ContentLength != 0, r.ContentLength > maxBody: // also -1: chunked
		h.Set("Connection", "close")
		say(w, http.StatusRequestEntityTooLarge, "the body is too large; only a POST has one")
	case r.URL.Path == pathHealth || r.URL.Path == pathReady:
		page.shows(w, r)
	default:
		if status := g.admit(r); status != http.StatusOK {
			h.Set("WWW-Authenticate", "Bearer")
			say(w, status, http.StatusText(status))
		} else if !found {
			say(w, http.StatusNotFound, "there is no such page")
		} else if !conn.claim() {
			h.Set("Retry-After", "1")
			say(w, http.StatusServiceUnavailable, "too many requests are being answered")
		} else if looks {
			page.shows(w, r)
		} else {
			g.change(w, r, changes)
		}
	}
}

// change lets a request through that is not made by a web page of somebody else:
// its browser sends no token of ours by itself, and no JSON without asking first.
func (g *guard) change(w http.ResponseWriter, r *http.Request, changes http.HandlerFunc) {
	media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch {
	case g.open:
		say(w, http.StatusForbidden, "changes need a token: set admin.token_file")
	case g.origin.Check(r) != nil:
		say(w, http.StatusForbidden, "this request comes from another site")
	case r.Method == http.MethodPost && !strings.EqualFold(strings.TrimSpace(media), "application/json"):
		say(w, http.StatusUnsupportedMediaType, "only application/json")
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		changes(w, r)
	}
}

// knows says whether host is a name of this server. A web page of evil.example
// whose name leads to 127.0.0.1 makes the browser ask us with that name (DNS
// rebinding); an IP address cannot be made to lead elsewhere.
func (g *guard) knows(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	for _, name := range g.names {
		if name != "" && strings.EqualFold(host, name) {
			return true
		}
	}
	return false
}

// admit gives 200, 401 without the token, or 429 for wrong ones beyond those that
// are allowed. The right one is let in whatever others have sent: all of loopback is
// one address, and any process there could keep the operator out. Who goes on
// guessing behind the 429 has no hope: a token has at least 16 characters.
func (g *guard) admit(r *http.Request) int {
	if g.open {
		return http.StatusOK
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return http.StatusUnauthorized // no guess
	}
	// Hashes have one length, so the time tells nothing about the token's.
	sum, own := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(g.token.Reveal()))
	if subtle.ConstantTimeCompare(sum[:], own[:]) == 1 {
		return http.StatusOK
	}
	from := network(r.RemoteAddr)
	g.mu.Lock()
	defer g.mu.Unlock()
	if now := time.Now(); now.Sub(g.since) >= window {
		clear(g.wrong)
		g.since = now
	}
	if _, known := g.wrong[from]; !known && len(g.wrong) >= maxGuessers {
		from = netip.Prefix{}
	}
	if g.wrong[from] >= guesses {
		return http.StatusTooManyRequests
	}
	g.wrong[from]++
	return http.StatusUnauthorized
}

// network is who is counted: an IPv4 address, or an IPv6 network of one customer.
func network(remote string) netip.Prefix {
	peer, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	return identity.Home(peer.Addr())
}
