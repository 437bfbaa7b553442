package pool

import (
	"context"
	"fmt"
	"time"

	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// SetClientID has each connection that the account gets from now on told what the client
// is, before anything else: the argument of ID (RFC 2971), as upstream.FormatID. A client
// that said it before its login need not say it again.
func (a *Account) SetClientID(id string) { a.clientID = id }

// TakeLoginConn takes the connection that the login has made, where no Lease has had it yet;
// nil if there is none. Keep gives it back, as it was.
func (a *Account) TakeLoginConn() *lease.Conn {
	pc := a.loginConn
	if pc == nil {
		return nil
	}
	a.loginConn = nil
	return &pc.Conn
}

// ReturnLoginConn makes a connection of First the next Lease's again.
func (a *Account) ReturnLoginConn(c *lease.Conn) { a.loginConn = a.findLeased(c, clientUse) }

// sendClientID tells the backend on h what the client is, where it was told something
// else. A connection that was used by another client of the account, and goes to one
// that never said ID, is left as it is: nobody pays a round trip for what was not said.
//
// With an error h is closed.
func (a *Account) sendClientID(ctx context.Context, pc *pooledConn) error {
	if a.clientID == "" || a.clientID == pc.SentClientID || !pc.Caps().Has("ID") {
		return nil
	}
	p := a.pool
	deadline := time.Now().Add(p.cfg.AnswerTimeout)
	if ctxDeadline, ok := ctx.Deadline(); ok && ctxDeadline.Before(deadline) {
		deadline = ctxDeadline
	}
	_, err := pc.Run(deadline, "ID "+a.clientID, func(response []byte) error { // NO and BAD are answers, too
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
