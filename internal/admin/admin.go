// Package admin is the HTTP server for operators: metrics, health, route
// explanations, live sessions, limits and bans. GET changes nothing; changes of bans
// need the token, even where reads do not.
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
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin/api"
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
	Metrics http.Handler
	Ready   func() error // returns nil while new clients are accepted
	// Operations are those of package api that this gateway executes.
	Operations []api.Endpoint
}

// Server is the HTTP server of the admin address.
type Server struct {
	// Set once.
	cfg         Settings
	log         *zap.Logger
	filter      *accessFilter
	http        *http.Server
	tcpListener *net.TCPListener // set by Listen
	listener    net.Listener     // tcpListener with a bound on connections
	released    atomic.Bool      // set by ReleaseAddress
}

// New creates a Server.
func New(cfg Settings, deps Deps, log *zap.Logger) *Server {
	s := &Server{cfg: cfg, log: log, filter: newAccessFilter(cfg, newEndpoints(deps))}
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

// Listen opens the address.
func (s *Server) Listen() error {
	var err error
	if s.tcpListener, err = listen.TCP(s.cfg.Address); err != nil {
		return fmt.Errorf("listen for admin: %w", err)
	}
	s.listener = newBoundedListener(s.tcpListener)
	return nil
}

// Addr returns the listening address, after Listen.
func (s *Server) Addr() net.Addr { return s.tcpListener.Addr() }

// Close closes the listener of a Server whose Serve was not called.
func (s *Server) Close() error {
	if s.listener == nil {
		return nil
	}
	return s.listener.Close()
}

// ReleaseAddress closes the listener as soon as another process listens on the
// address, or at once if that cannot be determined. It is for a process that drains.
// It returns after that, or with ctx.
func (s *Server) ReleaseAddress(ctx context.Context) {
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
	_ = s.listener.Close()             // Serve notices
	s.log.Info("admin address released", zap.Stringer("address", s.Addr()))
}

// Serve serves until ctx is done, which is not an error. Listen must come first.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	go s.runServer(served)
	select {
	case err := <-served:
		if !s.released.Load() {
			return fmt.Errorf("admin: %w", err) // the listener failed; nothing else ends it
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if s.http.Shutdown(shutdownCtx) != nil {
		_ = s.http.Close() // closes answers that the clients do not read
	}
	<-served
	return nil
}

// runServer runs as a goroutine; it ends when the server is shut down or its
// listener is closed or fails.
func (s *Server) runServer(served chan<- error) {
	served <- s.http.Serve(s.listener)
	close(served)
}

// Paths. Health and readiness need no token, because load balancers have none; they
// return one word.
const (
	pathMetrics = "/metrics"
	pathHealth  = "/healthz"
	pathReady   = "/readyz"
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
	for _, o := range d.Operations {
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
