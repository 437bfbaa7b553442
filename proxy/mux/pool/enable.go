package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"imapgate/internal/imap"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// maxEnableEffects bounds the names whose effect in ENABLE is remembered. Only listed
// capabilities are tried, so that a backend reaches it, not a client.
const maxEnableEffects = 512

// ProbeExtensions says which of names this backend enables, as it spells them. What is
// not known is tried, on a connection that the next Lease takes if it suits: so
// no mailbox need be closed for it (RFC 5161 §3.1). A session that has a lease
// gives it back before, lest it wait for itself at the limit.
//
// Errors as Lease's.
func (a *Account) ProbeExtensions(ctx context.Context, names []string) ([]string, error) {
	p := a.pool
	listed := filterListed(names, a.caps)
	if enabled, ok := p.lookUpEffects(listed); ok {
		return enabled, nil
	}
	pc, err := a.acquireConn(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, name := range p.untriedNames(listed) {
		before := pc.Enabled
		enabled, err := p.sendEnable(pc, []string{name}) // alone, because it may bring others along
		if err != nil {
			p.discard(pc, discardReason(err))
			return nil, fmt.Errorf("enable at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
		}
		if before.Has(name) && !slices.Contains(enabled, name) { // one before it has, and it is not told twice
			enabled = append(enabled, name)
		}
		p.recordEffect(name, enabled)
	}
	a.loginConn = pc
	enabled, _ := p.lookUpEffects(listed)
	return enabled, nil
}

// filterListed are those of names that a backend with caps may know, once each, in
// upper case. QRESYNC alone stands for CONDSTORE, too (RFC 7162 §3.2).
func filterListed(names []string, caps imap.Caps) []string {
	if !caps.Has("ENABLE") && !caps.Has(lease.Rev2) {
		return nil
	}
	var set lease.Extensions
	for _, name := range names {
		upper := strings.ToUpper(name)
		if caps.Has(upper) || upper == lease.Condstore && caps.Has(lease.Qresync) {
			set = set.With(upper)
		}
	}
	return strings.Fields(string(set))
}

// lookUpEffects answers from memory, if all is known.
func (p *Pool) lookUpEffects(names []string) (enabled []string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		effect, known := p.enableEffects[name]
		if !known {
			return nil, false
		}
		for _, spelled := range effect {
			if !slices.Contains(enabled, spelled) {
				enabled = append(enabled, spelled)
			}
		}
	}
	return enabled, true
}

// untriedNames are those of names that have not been tried.
func (p *Pool) untriedNames(names []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { _, known := p.enableEffects[name]; return known })
}

// recordEffect remembers what ENABLE has done with a name.
func (p *Pool) recordEffect(name string, enabled []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.enableEffects) < maxEnableEffects {
		p.enableEffects[name] = enabled
	}
}
