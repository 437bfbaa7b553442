// Package admin is the HTTP server for operators: the API of package api, metrics and health,
// on an address and on a Unix socket. GET changes nothing; changes need a token with the role
// operator, or the socket, even where reads need none.
//
// It protects itself against web pages that make the operator's browser send
// requests under a foreign name, guessed tokens, slow and large requests, and
// paths that almost match. The functions in Deps provide the content; they must be
// safe for concurrent use. It has no profiler and shows no secrets.
//
// A Server owns its listener and connections.
package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/audit"
	"imapgate/internal/listen"
)

// Bounds of one request, and of all requests together.
const (
	headerTimeout   = 5 * time.Second  // for the header of a request
	readTimeout     = 10 * time.Second // for a whole request
	writeTimeout    = 30 * time.Second // for its answer
	idleTimeout     = 2 * time.Minute  // of a connection between requests
	maxHeader       = 16 << 10         // bytes
	maxBody         = 4 << 10          // bytes
	maxConns        = 64               // concurrent connections; a new one replaces one without a request
	maxRequests     = 48               // concurrent requests, except health and readiness; more get 503
	shutdownTimeout = 2 * time.Second  // for answers in progress when the server ends

	sharedPollInterval = 200 * time.Millisecond // how often ReleaseAddress checks the address
)

// Deps are the sources of the content.
type Deps struct {
	Version string
	Tokens  *Tokens
	TLS     func() *tls.Config // of the address; nil: HTTP
	Metrics http.Handler
	Ready   func() error // returns nil while new clients are accepted
	// OnRefusal is called when a viewer tries to change something.
	OnRefusal func(caller api.Caller, request string)
	Follow    func() (*audit.Follower, error) // the audit records, for readers of events
	API       []api.Endpoint
	Legacy    []legacy.Endpoint // of package legacy
}

// Server is the HTTP server of the admin address and the admin socket.
type Server struct {
	// Set once.
	cfg         Settings
	tls         func() *tls.Config
	log         *zap.Logger
	filter      *accessFilter
	http        *http.Server
	tcpListener *net.TCPListener   // of the address; nil for none. Set by Listen.
	socket      *socket            // nil for none. Set by Listen.
	listeners   []*boundedListener // of both
	released    atomic.Bool        // set by ReleaseAddress
}

// New creates a Server.
func New(cfg Settings, deps Deps, log *zap.Logger) *Server {
	s := &Server{cfg: cfg, tls: deps.TLS, log: log, filter: newAccessFilter(cfg, deps)}
	s.http = &http.Server{
		Handler:           s.filter,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       withConn,
		ConnState:         onStateChange,
		// net/http logs only clients that violate the protocol.
		ErrorLog:  zap.NewStdLog(log.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
		Protocols: new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true)
	return s
}

// Listen opens the address and the socket.
func (s *Server) Listen() error {
	if s.cfg.Address != "" {
		tcp, err := listen.TCP(s.cfg.Address)
		if err != nil {
			return fmt.Errorf("listen for admin: %w", err)
		}
		s.tcpListener = tcp
		s.listeners = append(s.listeners, newBoundedListener(tcp))
	}
	return s.openSocket()
}

// openSocket opens the socket. The one of the default path needs a directory, which a service
// manager makes.
func (s *Server) openSocket() error {
	if s.cfg.Socket == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(s.cfg.Socket)); s.cfg.SocketIsDefault && err != nil {
		s.log.Info("no admin socket: its directory does not exist", zap.String("socket", s.cfg.Socket))
		return nil
	}
	opened, err := listenSocket(s.cfg.Socket, s.log)
	switch {
	case err != nil && s.cfg.SocketIsDefault:
		s.log.Warn("no admin socket", zap.Error(err))
		return nil
	case err != nil:
		return &SocketError{fmt.Errorf("admin socket: %w", err)}
	}
	s.socket = opened
	s.listeners = append(s.listeners, newBoundedListener(opened))
	return nil
}

// SocketError is an error of Listen about the socket.
type SocketError struct{ Err error }

func (e *SocketError) Error() string { return e.Err.Error() }
func (e *SocketError) Unwrap() error { return e.Err }

// Addr returns the listening address, after Listen; nil for none.
func (s *Server) Addr() net.Addr {
	if s.tcpListener == nil {
		return nil
	}
	return s.tcpListener.Addr()
}

// SocketPath returns the path of the socket, after Listen; "" for none.
func (s *Server) SocketPath() string {
	if s.socket == nil {
		return ""
	}
	return s.socket.path
}

// Close closes the listeners of a Server whose Serve was not called.
func (s *Server) Close() (err error) {
	for _, l := range s.listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// ReleaseAddress closes the listeners as soon as another process listens on the
// address, or at once if that cannot be determined. It is for a process that drains.
// It returns after that, or with ctx. Without an address it keeps the socket, which the next
// process replaces.
func (s *Server) ReleaseAddress(ctx context.Context) {
	if s.tcpListener == nil {
		return
	}
	ticker := time.NewTicker(sharedPollInterval)
	defer ticker.Stop()
	for {
		shared, err := listen.IsShared(s.Addr())
		if shared || err != nil {
			break
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
	s.released.Store(true)
	s.http.SetKeepAlivesEnabled(false) // clients of this server connect to the other one next
	_ = s.listeners[0].Close()         // Serve notices
	s.log.Info("admin address released", zap.Stringer("address", s.Addr()))
}

// Serve serves until ctx is done, which is not an error. Listen must come first.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, len(s.listeners))
	for _, l := range s.listeners {
		go s.serveListener(l, served)
	}
	running := len(s.listeners)
	for running > 0 && ctx.Err() == nil {
		select {
		case err := <-served:
			running--
			if !s.released.Load() {
				return fmt.Errorf("admin: %w", err) // the listener failed; nothing else ends it
			}
		case <-ctx.Done():
		}
	}
	<-ctx.Done()
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if s.http.Shutdown(shutdownCtx) != nil {
		_ = s.http.Close() // closes answers that the clients do not read
	}
	for ; running > 0; running-- {
		<-served
	}
	return nil
}

// serveListener runs as a goroutine; it ends when the server is shut down or the
// listener is closed or fails.
func (s *Server) serveListener(l *boundedListener, served chan<- error) {
	if s.tls == nil || s.socket != nil && l.Listener == s.socket {
		served <- s.http.Serve(l)
		return
	}
	served <- s.http.Serve(tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: s.tlsForHTTP}))
}

// tlsForHTTP returns the configuration of the address, which is made for IMAP, for HTTP.
func (s *Server) tlsForHTTP(*tls.ClientHelloInfo) (*tls.Config, error) {
	config := s.tls().Clone()
	config.NextProtos = []string{"http/1.1"}
	return config, nil
}

// Paths. Health and readiness need no token, because load balancers have none; they
// return one word.
const (
	pathMetrics = "/metrics"
	pathHealth  = "/healthz"
	pathReady   = "/readyz"

	apiPrefix   = "/api/"
	pathOpenAPI = "/api/openapi.json"
	pathEvents  = "/api/v1/events"
)

// endpoint has the handlers of a path.
type endpoint struct {
	get     http.HandlerFunc            // for GET and HEAD
	changes map[string]http.HandlerFunc // for other methods
}

// allowedMethods returns the methods of the path, in the form of the header Allow.
func (e endpoint) allowedMethods() string {
	return strings.Join(append([]string{"GET", "HEAD"}, slices.Sorted(maps.Keys(e.changes))...), ", ")
}

// newEndpoints returns all paths; a path must match exactly.
func newEndpoints(d Deps) map[string]endpoint {
	all := map[string]endpoint{
		pathMetrics: {get: d.Metrics.ServeHTTP},
		pathHealth:  {get: func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") }},
		pathReady:   {get: d.serveReady},
	}
	for _, o := range d.Legacy {
		e := all[o.Path]
		if o.Method == http.MethodGet {
			e.get = o.Serve
		} else if e.changes == nil {
			e.changes = map[string]http.HandlerFunc{o.Method: o.Serve}
		} else {
			e.changes[o.Method] = o.Serve
		}
		all[o.Path] = e
	}
	return all
}

// serveReady tells load balancers whether to send clients here.
func (d Deps) serveReady(w http.ResponseWriter, _ *http.Request) {
	if err := d.Ready(); err != nil {
		writeText(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	writeText(w, http.StatusOK, "ready")
}

// writeText writes a status and one line of text.
func writeText(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
