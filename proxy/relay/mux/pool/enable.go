package pool

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/lease"
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
	if enabled, ok := p.lookUpEffects(listed...); ok {
		return enabled, nil
	}
	pc, err := a.acquireConn(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, name := range listed {
		if _, cached := p.lookUpEffects(name); cached {
			continue
		}
		before := pc.Enabled
		enabled, err := p.sendEnable(pc, []string{name}) // alone, because it may imply others
		if err != nil {
			return nil, err
		}
		if before.Has(name) && !slices.Contains(enabled, name) { // an earlier name implied it, and it is not reported twice
			enabled = append(enabled, name)
		}
		p.recordEffect(name, enabled)
	}
	a.loginConn = pc
	enabled, _ := p.lookUpEffects(listed...)
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
func (p *Pool) lookUpEffects(names ...string) (enabled []string, ok bool) {
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

// recordEffect caches the extensions that ENABLE enabled for a name.
func (p *Pool) recordEffect(name string, enabled []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.enableEffects) < maxEnableEffects {
		p.enableEffects[name] = enabled
	}
}

// sendEnable enables extensions on a connection without a mailbox (RFC 5161) and returns those
// the backend confirms, as it spells them. On error pc is closed.
func (p *Pool) sendEnable(pc *pooledConn, names []string) (enabled []string, err error) {
	res, err := pc.runKeepingAlerts(p.answerDeadline(context.Background()), "ENABLE "+strings.Join(names, " "), func(response []byte) error {
		res, err := imap.ParseResponse(response[:len(response)-len("\r\n")])
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", lease.ErrProtocol, err)
		case res.Name == "ENABLED":
			enabled = append(enabled, strings.Fields(imap.ParseCaps(res.Text).String())...)
			return nil
		case res.Name == "CAPABILITY":
			return nil
		}
		return acceptStatus(response)
	})
	if err == nil && res.Name != "OK" {
		err = fmt.Errorf("%w: %s", ErrNotEnabled, res.Name)
	}
	if err != nil {
		return nil, p.discardFailed(pc, "enable", err)
	}
	pc.Enabled = pc.Enabled.With(enabled...)
	pc.lastAnswer = time.Now()
	return enabled, nil
}

// sendClientID sends the client's ID to the backend on pc, unless the backend already has it.
// If this client has sent no ID, the connection keeps that of an earlier client of the account:
// correcting it is not worth a round trip.
//
// On error pc is closed.
func (a *Account) sendClientID(ctx context.Context, pc *pooledConn) error {
	if a.clientID == "" || a.clientID == pc.SentClientID || !pc.Caps().Has("ID") {
		return nil
	}
	p := a.pool
	_, err := pc.runKeepingAlerts(p.answerDeadline(ctx), "ID "+a.clientID, func(response []byte) error { // NO and BAD are accepted
		switch word, _ := responseName(response); word {
		case "ID", "OK", "NO", "BAD", "CAPABILITY":
			return nil
		}
		return errUnread
	})
	if err != nil {
		return p.discardFailed(pc, "ID", err)
	}
	pc.SentClientID, pc.lastAnswer = a.clientID, time.Now()
	return nil
}
