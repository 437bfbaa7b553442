package pool

import (
	"context"
	"fmt"
	"time"

	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

// SetClientID sets the argument of ID (RFC 2971), as upstream.FormatID, that is sent on each
// connection the account leases from now on, before any other command. A client that sent ID
// before its login need not send it again.
func (a *Account) SetClientID(id string) { a.clientID = id }

// TakeLoginConn returns the connection of the login if it has not been leased, otherwise nil.
// ReturnLoginConn must return it in the same state.
func (a *Account) TakeLoginConn() *lease.Conn {
	pc := a.loginConn
	if pc == nil {
		return nil
	}
	a.loginConn = nil
	return &pc.Conn
}

// ReturnLoginConn makes a connection of TakeLoginConn available to the next Acquire again.
func (a *Account) ReturnLoginConn(c *lease.Conn) { a.loginConn = a.findLeased(c, clientUse) }

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
	deadline := time.Now().Add(p.cfg.AnswerTimeout)
	if ctxDeadline, ok := ctx.Deadline(); ok && ctxDeadline.Before(deadline) {
		deadline = ctxDeadline
	}
	_, err := pc.Run(deadline, "ID "+a.clientID, func(response []byte) error { // NO and BAD are accepted
		if pc.KeepAlert(response) {
			return nil
		}
		switch word, _ := responseName(response); word {
		case "ID", "OK", "NO", "BAD", "CAPABILITY":
			return nil
		}
		return errUnread
	})
	if err != nil {
		p.discard(pc, discardReason(err))
		return fmt.Errorf("ID at %s: %w: %w", p.backend.Name(), upstream.ErrUnavailable, err)
	}
	pc.SentClientID, pc.lastAnswer = a.clientID, time.Now()
	return nil
}
