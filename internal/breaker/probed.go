package breaker

import (
	"context"
	"sync"
	"time"
)

// Probed is a breaker for a service whose time a client can waste: what a
// client asks may hang or break the connection where other questions are
// answered. So no client's question opens it. After that many of them in a row
// had no answer, the next caller asks a question of the gateway's own first,
// and that one decides. A service may answer clients' questions and never the
// gateway's own; so while the breaker is open, each period lets one question of a
// client through all the same, whose answer closes it. It is safe for concurrent use.
type Probed struct {
	// Set once.
	ask     func(context.Context) error   // nil: there was an answer, whatever it says
	timeout time.Duration                 // of ask
	tell    func(open bool, reason error) // called when the breaker opens or closes; reason is of ask

	// Guarded by mu.
	mu       sync.Mutex
	failures int           // of clients' questions, in a row, while it is closed
	breaker  Breaker       // of the gateway's own
	probe    chan struct{} // closed when it is decided; nil: nobody probes while it is open
	beside   int           // callers that wait for that; at most MaxBeside
}

// NewProbed makes a closed breaker. ask is the gateway's own question.
func NewProbed(ask func(context.Context) error, timeout time.Duration, tell func(bool, error)) *Probed {
	return &Probed{ask: ask, timeout: timeout, tell: tell}
}

// Allow reports whether the service may be asked now. It may take the time of
// one question of the gateway's own, which does not end with ctx: a client that
// leaves must not leave the question undecided. While open, the one caller of a
// period may ask whatever becomes of that question.
func (p *Probed) Allow(ctx context.Context) bool {
	p.mu.Lock()
	open, suspected := p.breaker.Open(), p.failures >= After
	if suspected {
		p.failures = 0 // the others go on asking until there is a verdict
	}
	due := suspected || open && p.breaker.Allow(time.Now())
	if due && open && p.probe == nil {
		p.probe = make(chan struct{})
	}
	p.mu.Unlock()
	if !due {
		return !open
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.timeout)
	defer cancel()
	err := p.ask(ctx)
	p.decide(err)
	return open || err == nil
}

// Await waits for the outcome of the question that somebody else asks at this moment,
// while the service is left alone: the gateway's own, and then the one of a client. It
// reports whether the service answers again. It ends with ctx, and after the time of one
// question; it is false at once while nobody asks, and for more than MaxBeside callers.
func (p *Probed) Await(ctx context.Context) bool {
	p.mu.Lock()
	if !p.breaker.Open() || p.probe == nil || p.beside == MaxBeside {
		defer p.mu.Unlock()
		return !p.breaker.Open()
	}
	probe := p.probe
	p.beside++
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	select {
	case <-probe:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beside--
	return !p.breaker.Open()
}

// decided ends the wait of those beside a probe. mu is held.
func (p *Probed) decided() {
	if p.probe != nil {
		close(p.probe)
		p.probe = nil
	}
}

// decide opens or closes the breaker by the answer to the gateway's own question.
func (p *Probed) decide(err error) {
	p.mu.Lock()
	was := p.breaker.Open()
	p.failures = 0
	if err == nil {
		p.breaker.Answered()
		p.decided()
	} else {
		p.breaker.open(time.Now())
	}
	is := p.breaker.Open()
	p.mu.Unlock()
	if was != is {
		p.tell(is, err)
	}
}

// Failed notes that a client's question had no answer.
func (p *Probed) Failed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.breaker.Open() {
		p.decided() // a client's question, behind the gateway's own
		return
	}
	p.failures++
}

// Answered notes that the service gave an answer.
func (p *Probed) Answered() { p.decide(nil) }
