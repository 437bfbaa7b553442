package admin

import (
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"imapgate/internal/admin/api"
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

// accessFilter is the access control of the admin listeners.
type accessFilter struct {
	// Set once.
	paths       map[string]endpoint // besides those of api
	api         http.Handler        // everything under apiPrefix
	tokens      *Tokens
	onRefusal   func(caller api.Caller, request string) // a viewer tries to change something
	hostNames   []string
	crossOrigin *http.CrossOriginProtection

	mu sync.Mutex
	// Guarded by mu.
	guesses     map[netip.Prefix]int // wrong tokens in this window; at most maxGuessers + 1
	windowStart time.Time            // start of the window
}

func newAccessFilter(cfg Settings, deps Deps) *accessFilter {
	a := &accessFilter{
		paths: newEndpoints(deps), api: newAPI(deps), tokens: deps.Tokens, onRefusal: deps.OnRefusal,
		hostNames: []string{"localhost"}, guesses: make(map[netip.Prefix]int), crossOrigin: http.NewCrossOriginProtection(),
	}
	if host, _, err := net.SplitHostPort(cfg.Address); err == nil {
		a.hostNames = append(a.hostNames, host)
	}
	if hostname, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(hostname, ".")
		a.hostNames = append(a.hostNames, hostname, short)
	}
	return a
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
	endpoint, found := a.paths[r.URL.Path]
	isAPI := isAPIPath(r.URL)
	switch {
	case conn.peer() == "" && !a.isOwnHost(r.Host):
		writeText(w, http.StatusMisdirectedRequest, "this server does not have that name")
	case !isRead(r) && (isAPI && !isAPIMethod(r.Method) || !isAPI && endpoint.changes[r.Method] == nil):
		h.Set("Allow", endpoint.allowedMethods())
		writeText(w, http.StatusMethodNotAllowed, "only "+endpoint.allowedMethods())
	case hasUnwantedBody(r, isAPI):
		h.Set("Connection", "close")
		writeText(w, http.StatusRequestEntityTooLarge, "the body is too large, or this method has none")
	case r.URL.Path == pathHealth || r.URL.Path == pathReady:
		endpoint.get(w, r)
	default:
		caller, status := a.authenticate(r)
		if status != http.StatusOK {
			h.Set("WWW-Authenticate", "Bearer")
			writeText(w, status, http.StatusText(status))
			return
		}
		r = r.WithContext(api.WithCaller(r.Context(), caller))
		switch {
		case !found && !isAPI:
			writeText(w, http.StatusNotFound, "not found; the paths are "+strings.Join(slices.Sorted(maps.Keys(a.paths)), ", ")+" and those in "+pathOpenAPI)
		case !isRead(r) && !a.mayChange(w, r, caller):
		case !conn.acquireRequestSlot():
			h.Set("Retry-After", "1")
			writeText(w, http.StatusServiceUnavailable, "too many requests in progress")
		default:
			a.serve(w, r, endpoint, isAPI)
		}
	}
}

func isRead(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// isAPIMethod reports whether an operation of the API may change something by this method.
func isAPIMethod(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodDelete
}

// isAPIPath reports whether a path may be one of the API. Its paths match exactly: package
// http would redirect others.
func isAPIPath(u *url.URL) bool {
	return strings.HasPrefix(u.Path, apiPrefix) && path.Clean(u.Path) == u.Path
}

// hasUnwantedBody reports whether a request has a body where none is expected, or a larger one.
// A length of -1 is that of a chunked body, which only the API bounds as it reads.
func hasUnwantedBody(r *http.Request, isAPI bool) bool {
	switch {
	case isAPI && (r.Method == http.MethodPost || r.Method == http.MethodPut):
		return r.ContentLength > api.MaxImport
	case r.Method == http.MethodPost:
		return r.ContentLength > maxBody
	}
	return r.ContentLength != 0
}

func (a *accessFilter) serve(w http.ResponseWriter, r *http.Request, e endpoint, isAPI bool) {
	switch {
	case isAPI:
		a.api.ServeHTTP(w, r)
	case isRead(r):
		e.get(w, r)
	default:
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		e.changes[r.Method](w, r)
	}
}

// mayChange reports whether a request may change something, and refuses it otherwise. It
// refuses requests of other sites' web pages: a browser does not send our token on its own,
// nor JSON without a preflight request.
func (a *accessFilter) mayChange(w http.ResponseWriter, r *http.Request, caller api.Caller) bool {
	mediaType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	switch {
	case caller.Name == "":
		writeText(w, http.StatusForbidden, "changes need a token: set admin.token_file or admin.tokens_file, or use the admin socket")
	case caller.Role != api.Operator:
		a.onRefusal(caller, r.Method+" "+r.URL.Path)
		writeText(w, http.StatusForbidden, "a viewer may only read")
	case a.crossOrigin.Check(r) != nil:
		writeText(w, http.StatusForbidden, "this request comes from another site")
	case r.Method != http.MethodDelete && !strings.EqualFold(strings.TrimSpace(mediaType), "application/json"):
		writeText(w, http.StatusUnsupportedMediaType, "only application/json")
	default:
		return true
	}
	return false
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

// authenticate returns the caller, and 200, 401 without a valid token, or 429 for more wrong
// ones than allowed. A correct token is always accepted: all of loopback is one address,
// and any process there could lock the operator out. Guessing despite the 429 is
// hopeless: a token has at least 16 characters. If there are no tokens, every client is a
// viewer without a name.
func (a *accessFilter) authenticate(r *http.Request) (api.Caller, int) {
	if peer := connOf(r).peer(); peer != "" {
		return api.Caller{Name: peer, Role: api.Operator}, http.StatusOK
	}
	if !a.tokens.exist() {
		return api.Caller{Role: api.Viewer}, http.StatusOK
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return api.Caller{}, http.StatusUnauthorized // no token, so not a guess
	}
	if caller, ok := a.tokens.find(token); ok {
		return caller, http.StatusOK
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
		return api.Caller{}, http.StatusTooManyRequests
	}
	a.guesses[prefix]++
	return api.Caller{}, http.StatusUnauthorized
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
