package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"imapgate/internal/imap"
	"imapgate/proxy/upstream"
)

// maxEnableEffects bounds the names whose effect in ENABLE is cached. Only listed capabilities
// are probed, so a client cannot fill the cache.
const maxEnableEffects = 512

// ProbeExtensions returns those of names that this backend enables, as it spells them. Names
// not in the cache are probed on a connection without a mailbox (RFC 5161 §3.1), which the next
// Acquire uses if it fits. A session must release its lease first, or it could wait for itself
// at the limit.
//
// Errors are those of Acquire.
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
		enabled, err := p.sendEnable(pc, []string{name}) // alone, because it may imply others
		if err != nil {
			p.discard(pc, discardReason(err))
			return nil, fmt.Errorf("enable at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
		}
		if before.Has(name) && !slices.Contains(enabled, name) { // an earlier name implied it, and it is not reported twice
			enabled = append(enabled, name)
		}
		p.recordEffect(name, enabled)
	}
	a.loginConn = pc
	enabled, _ := p.lookUpEffects(listed)
	return enabled, nil
}

// filterListed returns those of names that a backend with caps may support, once each, in upper
// case. QRESYNC implies CONDSTORE (RFC 7162 §3.2).
func filterListed(names []string, caps imap.Caps) []string {
	if !caps.Has("ENABLE") && !caps.Has(imap.Rev2) {
		return nil
	}
	var set imap.Extensions
	for _, name := range names {
		upper := strings.ToUpper(name)
		if caps.Has(upper) || upper == imap.Condstore && caps.Has(imap.Qresync) {
			set = set.With(upper)
		}
	}
	return strings.Fields(string(set))
}

// lookUpEffects returns the cached effect of names; ok is false unless all are cached.
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

// untriedNames returns those of names that have not been probed.
func (p *Pool) untriedNames(names []string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { _, known := p.enableEffects[name]; return known })
}

// recordEffect caches the extensions that ENABLE enabled for a name.
func (p *Pool) recordEffect(name string, enabled []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.enableEffects) < maxEnableEffects {
		p.enableEffects[name] = enabled
	}
}
