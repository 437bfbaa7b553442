package pool

import (
	"context"
	"fmt"
	"time"

	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// Identify has each connection that the account gets from now on told what the client
// is, before anything else: the argument of ID (RFC 2971), as upstream.OwnID. A client
// that said it before its login need not say it again.
func (a *Account) Identify(id string) { a.id = id }

// First takes the connection that the login has made, where no Lease has had it yet;
// nil if there is none. Keep gives it back, as it was.
func (a *Account) First() *lease.Conn {
	h := a.first
	if h == nil {
		return nil
	}
	a.first = nil
	return &h.Conn
}

// Keep makes a connection of First the next Lease's again.
func (a *Account) Keep(c *lease.Conn) { a.first = a.out(c, forClient) }

// identified tells the backend on h what the client is, where it was told something
// else. A connection that was used by another client of the account, and goes to one
// that never said ID, is left as it is: nobody pays a round trip for what was not said.
//
// With an error h is closed.
func (a *Account) identified(ctx context.Context, h *held) error {
	if a.id == "" || a.id == h.ID || !h.Caps().Has("ID") {
		return nil
	}
	p := a.pool
	deadline := time.Now().Add(p.cfg.Answer)
	if limit, ok := ctx.Deadline(); ok && limit.Before(deadline) {
		deadline = limit
	}
	_, err := h.Run(deadline, "ID "+a.id, func(response []byte) error { // NO and BAD are answers, too
		if h.Heed(response) {
			return nil
		}
		switch word, _ := words(response); word {
		case "ID", "OK", "NO", "BAD", "CAPABILITY":
			return nil
		}
		return errUnread
	})
	if err != nil {
		p.discard(h, reasonOf(err))
		return fmt.Errorf("ID at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
	}
	h.ID, h.heard = a.id, time.Now()
	return nil
}
