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
	failures int     // of clients' questions, in a row, while it is closed
	breaker  Breaker // of the gateway's own
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

// decide opens or closes the breaker by the answer to the gateway's own question.
func (p *Probed) decide(err error) {
	p.mu.Lock()
	was := p.breaker.Open()
	p.failures = 0
	if err == nil {
		p.breaker.Answered()
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
	if !p.breaker.Open() {
		p.failures++
	}
}

// Answered notes that the service gave an answer.
func (p *Probed) Answered() { p.decide(nil) }
