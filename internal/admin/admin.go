// Package admin is the HTTP side for operators: metrics, health, what a route would
// be, live sessions, limits and bans. A GET changes nothing; what changes a ban needs the token,
// also where looking does not.
//
// It guards itself against the ways such an address is abused: a web page that
// makes the operator's browser ask it under a foreign name, guessed tokens, slow
// and large requests, paths that almost match. It does not know what it shows;
// whoever makes a Server hands in the functions, which must be safe for
// concurrent use. It has no profiler and no view of secrets.
//
// A Server owns its listener and connections.
package admin

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/listen"
)

// Bounds of one request, and of all at once.
const (
	headerTimeout   = 5 * time.Second  // for the head of a request
	readTimeout     = 10 * time.Second // for all of a request
	writeTimeout    = 30 * time.Second // for its answer
	idleTimeout     = 2 * time.Minute  // of a connection between requests
	maxHeader       = 16 << 10         // bytes
	maxBody         = 4 << 10          // bytes
	maxConns        = 64               // connections at a time; a new one replaces one without a request
	maxRequests     = 48               // requests at a time, but for health and readiness; more get 503
	shutdownTimeout = 2 * time.Second  // for answers under way when the server ends

	sharedPollInterval = 200 * time.Millisecond // how often ReleaseAddress looks
)

// Config is the `admin` block of the configuration.
type Config struct {
	Address string          // host:port
	Token   identity.Secret // zero: no token is asked for
}

// Deps is what there is to see.
type Deps struct {
	Metrics http.Handler
	Ready   func() error // nil while new clients can be let in
	// ExplainRoute says where a user would go, as something JSON can hold. Its error
	// means that the name is none.
	ExplainRoute func(ctx context.Context, user string) (any, error)
	// ListSessions says which live sessions of a user this gateway has, as Explain.
	ListSessions func(ctx context.Context, user string) (any, error)
	// ListBackends says what this gateway thinks of all backends.
	ListBackends func() any
	Limits       Limits
}

// Server is the admin address.
type Server struct {
	// Set once.
	cfg         Config
	log         *zap.Logger
	filter      *accessFilter
	http        *http.Server
	tcpListener *net.TCPListener // by Listen
	listener    net.Listener     // tcp, bounded
	released    atomic.Bool      // by ReleaseAddress
}

// New makes a Server.
func New(cfg Config, deps Deps, log *zap.Logger) *Server {
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
		// What net/http has to say is about clients that break the protocol.
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

// Addr is where it listens, after Listen.
func (s *Server) Addr() net.Addr { return s.tcpListener.Addr() }

// ReleaseAddress gives the address up as soon as another process listens there, or at once
// where that cannot be told: it is for a process that is about to end, and returns
// with ctx or when the address is given up.
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
	s.http.SetKeepAlivesEnabled(false) // those who have asked us ask the other one next
	_ = s.listener.Close()             // Serve notices
	s.log.Info("admin address given up", zap.Stringer("address", s.Addr()))
}

// Serve answers until ctx is done, which is no error. Listen comes first.
func (s *Server) Serve(ctx context.Context) error {
	served := make(chan error, 1)
	go s.runServer(served)
	select {
	case err := <-served:
		if !s.released.Load() {
			return fmt.Errorf("admin: %w", err) // the listener broke; nothing else ends it
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	shutdownCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if s.http.Shutdown(shutdownCtx) != nil {
		_ = s.http.Close() // answers that nobody reads
	}
	<-served
	return nil
}

// runServer is run as a goroutine; it ends when the server is shut down or its
// listener is closed or breaks.
func (s *Server) runServer(served chan<- error) {
	served <- s.http.Serve(s.listener)
	close(served)
}
