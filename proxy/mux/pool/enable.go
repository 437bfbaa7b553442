package pool

import (
	"context"
	"fmt"
	"strings"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// maxKnown bounds the names whose effect in ENABLE is remembered. Only listed
// capabilities are tried, so that a backend reaches it, not a client.
const maxKnown = 512

// Enable says which of names this backend enables, as it spells them. What is
// not known is tried, on a connection that the next Lease takes if it suits: so
// no mailbox need be closed for it (RFC 5161 §3.1). A session that has a lease
// gives it back before, lest it wait for itself at the limit.
//
// Errors as Lease's.
func (a *Account) Enable(ctx context.Context, names []string) ([]string, error) {
	p := a.pool
	listed := enableable(names, a.caps)
	if enabled, ok := p.lookUp(listed); ok {
		return enabled, nil
	}
	h, err := a.lease(ctx, "")
	if err != nil {
		return nil, err
	}
	enabled, err := p.enable(h, listed)
	if err != nil {
		p.discard(h, reasonOf(err))
		return nil, fmt.Errorf("enable at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
	}
	p.learn(listed, enabled)
	a.first = h
	return enabled, nil
}

// enableable are those of names that a backend with caps may know, once each, in
// upper case. QRESYNC alone stands for CONDSTORE, too (RFC 7162 §3.2).
func enableable(names []string, caps imap.Caps) []string {
	if !caps.Has("ENABLE") && !caps.Has(lease.Rev2) {
		return nil
	}
	var set lease.Enabled
	for _, name := range names {
		upper := strings.ToUpper(name)
		if caps.Has(upper) || upper == lease.Condstore && caps.Has(lease.Qresync) {
			set = set.With(upper)
		}
	}
	return strings.Fields(string(set))
}

// lookUp answers from memory, if all is known.
func (p *Pool) lookUp(names []string) (enabled []string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		spelled, known := p.known[name]
		if !known {
			return nil, false
		}
		if spelled != "" {
			enabled = append(enabled, spelled)
		}
	}
	return enabled, true
}

// learn remembers what ENABLE has done with names.
func (p *Pool) learn(names, enabled []string) {
	spelling := make(map[string]string, len(enabled))
	for _, name := range enabled {
		spelling[strings.ToUpper(name)] = name
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		if len(p.known) < maxKnown {
			p.known[name] = spelling[name]
		}
	}
}
