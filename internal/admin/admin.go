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
	headTime    = 5 * time.Second  // for the head of a request
	requestTime = 10 * time.Second // for all of a request
	answerTime  = 30 * time.Second // for its answer
	idleTime    = 2 * time.Minute  // of a connection between requests
	maxHead     = 16 << 10         // bytes
	maxBody     = 4 << 10          // bytes
	maxConns    = 64               // connections at a time; a new one replaces one without a request
	maxRequests = 48               // requests at a time, but for health and readiness; more get 503
	goodbyeTime = 2 * time.Second  // for answers under way when the server ends

	lookForOthers = 200 * time.Millisecond // how often GiveWay looks
)

// Config is the `admin` block of the configuration.
type Config struct {
	Address string          // host:port
	Token   identity.Secret // zero: no token is asked for
}

// Shows is what there is to see.
type Shows struct {
	Metrics http.Handler
	Ready   func() error // nil while new clients can be let in
	// Explain says where a user would go, as something JSON can hold. Its error
	// means that the name is none.
	Explain func(ctx context.Context, user string) (any, error)
	// Sessions says which live sessions of a user this gateway has, as Explain.
	Sessions func(ctx context.Context, user string) (any, error)
	// Backends says what this gateway thinks of all backends.
	Backends func() any
	Limits   Limits
}

// Server is the admin address.
type Server struct {
	// Set once.
	cfg      Config
	log      *zap.Logger
	guard    *guard
	http     *http.Server
	tcp      *net.TCPListener // by Listen
	listener net.Listener     // tcp, bounded
	givenUp  atomic.Bool      // by GiveWay
}

// New makes a Server.
func New(cfg Config, shows Shows, log *zap.Logger) *Server {
	s := &Server{cfg: cfg, log: log, guard: newGuard(cfg, pages(shows))}
	s.http = &http.Server{
		Handler:           s.guard,
		ReadHeaderTimeout: headTime,
		ReadTimeout:       requestTime,
		WriteTimeout:      answerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHead,
		ConnContext:       withConnection,
		ConnState:         watchState,
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
	if s.tcp, err = listen.TCP(s.cfg.Address); err != nil {
		return fmt.Errorf("listen for admin: %w", err)
	}
	s.listener = newBounded(s.tcp)
	return nil
}

// Addr is where it listens, after Listen.
func (s *Server) Addr() net.Addr { return s.tcp.Addr() }

// GiveWay gives the address up as soon as another process listens there, or at once
// where that cannot be told: it is for a process that is about to end, and returns
// with ctx or when the address is given up.
func (s *Server) GiveWay(ctx context.Context) {
	look := time.NewTicker(lookForOthers)
	defer look.Stop()
	for {
		others, err := listen.Shared(s.Addr())
		if others || err != nil {
			break
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
	s.givenUp.Store(true)
	s.http.SetKeepAlivesEnabled(false) // those who have asked us ask the other one next
	_ = s.listener.Close()             // Serve notices
	s.log.Info("admin address given up", zap.Stringer("address", s.Addr()))
}

// Serve answers until ctx is done, which is no error. Listen comes first.
func (s *Server) Serve(ctx context.Context) error {
	ended := make(chan error, 1)
	go s.serveInto(ended)
	select {
	case err := <-ended:
		if !s.givenUp.Load() {
			return fmt.Errorf("admin: %w", err) // the listener broke; nothing else ends it
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	soon, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTime)
	defer cancel()
	if s.http.Shutdown(soon) != nil {
		_ = s.http.Close() // answers that nobody reads
	}
	<-ended
	return nil
}

// serveInto is run as a goroutine; it ends when the server is shut down or its
// listener is closed or breaks.
func (s *Server) serveInto(ended chan<- error) {
	ended <- s.http.Serve(s.listener)
	close(ended)
}
