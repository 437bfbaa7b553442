package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/lease"
	"imapgate/proxy/upstream"
)

// Reasons to discard a connection on which nothing should be under way.
var (
	errUnread      = errors.New("backend sent an unsolicited response")
	errOutstanding = errors.New("response to a command of the previous session")
	errSelected    = errors.New("the mailbox may still be selected")
)

const (
	maxUnsolicited     = 16                     // responses that are read before a connection is leased
	unsolicitedTimeout = 100 * time.Millisecond // to read one of them to its end
)

// reset makes a connection fit for pooling, or returns the reason why it is not. The last
// exchange is a command of the gateway, which proves that every earlier command was answered.
func (p *Pool) reset(pc *pooledConn) (reason event.DiscardReason) {
	switch {
	case p.cfg.PoolIdleTimeout <= 0:
		return event.DiscardTTL
	case pc.Age() >= p.cfg.MaxAge:
		return event.DiscardAge
	case pc.Hold().IsLeaving():
		return event.DiscardMoved
	case pc.generation != p.generation(pc.cred):
		return event.DiscardCredentials
	case !pc.AtBoundary():
		return event.DiscardOutstanding
	case hasUnread(pc):
		return event.DiscardUnread
	}
	leaveMailbox := pc.unselect
	if !pc.Selected {
		leaveMailbox = func(deadline time.Time) error { return pc.runOK(deadline, "NOOP", acceptStatus) }
	}
	switch err := leaveMailbox(p.answerDeadline(context.Background())); {
	case errors.Is(err, errSelected):
		p.warnUnselect.Do(func() {
			p.log.Warn("backend cannot unselect a mailbox, so connections with a selected mailbox are not reused", zap.Error(err))
		})
		return event.DiscardSelected
	case err != nil:
		return discardReason(err)
	}
	pc.Selected = false
	if hasUnread(pc) {
		return event.DiscardUnread
	}
	pc.lastAnswer = time.Now()
	pc.idleSince = pc.lastAnswer
	return ""
}

// unselect leaves the mailbox without expunging: by UNSELECT (RFC 3691), or by opening INBOX
// read-only and closing it. It never closes the selected mailbox, because CLOSE would expunge.
func (pc *pooledConn) unselect(deadline time.Time) error {
	if pc.Caps().Has("UNSELECT") || pc.Caps().Has("IMAP4REV2") {
		return pc.runOK(deadline, "UNSELECT", acceptMailboxData)
	}
	res, err := pc.runKeepingAlerts(deadline, "EXAMINE INBOX", acceptMailboxData)
	switch {
	case err != nil:
		return err
	case res.Name != "OK", res.Code != "READ-ONLY":
		return fmt.Errorf("%w: EXAMINE INBOX %s", errSelected, upstream.DescribeResponse(res))
	}
	return pc.runOK(deadline, "CLOSE", acceptStatus)
}

// validate makes an idle connection fit for a lease, or returns the reason why it is not.
func (p *Pool) validate(ctx context.Context, pc *pooledConn) (reason event.DiscardReason) {
	if pc.User() != pc.cred.user.name {
		p.log.Error("pooled connection belongs to another user", zap.Stringer("user", pc.cred.user.name))
		return event.DiscardError
	}
	if time.Since(pc.lastAnswer) >= p.cfg.ValidateAfter {
		if err := pc.runOK(p.answerDeadline(ctx), "NOOP", acceptStatus); err != nil {
			return discardReason(err)
		}
	}
	for range maxUnsolicited {
		if !hasUnread(pc) {
			pc.lastAnswer = time.Now()
			return ""
		}
		if err := pc.readUnsolicited(); err != nil {
			return discardReason(err)
		}
	}
	return event.DiscardUnread
}

// answerDeadline returns the deadline of a command that is sent now.
func (p *Pool) answerDeadline(ctx context.Context) time.Time {
	deadline := time.Now().Add(p.cfg.AnswerTimeout)
	if ctxDeadline, ok := ctx.Deadline(); ok && ctxDeadline.Before(deadline) {
		return ctxDeadline
	}
	return deadline
}

// hasUnread reports whether a connection has unread bytes or has ended.
func hasUnread(pc *pooledConn) bool {
	return !pc.AtBoundary() || pc.HasUnread()
}

func (pc *pooledConn) readUnsolicited() error {
	pc.SetDeadline(time.Now().Add(unsolicitedTimeout))
	defer pc.SetDeadline(time.Time{})
	response, err := pc.ReadUntagged()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errUnread
	}
	if err != nil {
		return err
	}
	if pc.KeepAlert(response) {
		return nil
	}
	return acceptStatus(response)
}

// runOK runs a command of the gateway that must be answered OK.
func (pc *pooledConn) runOK(deadline time.Time, command string, onUntagged func([]byte) error) error {
	res, err := pc.runKeepingAlerts(deadline, command, onUntagged)
	if err == nil && res.Name != "OK" {
		err = fmt.Errorf("%w: %s %s", lease.ErrProtocol, command, res.Name)
	}
	return err
}

// runKeepingAlerts runs a command of the gateway. It stores alerts for the next session and
// passes other untagged responses to onUntagged.
func (pc *pooledConn) runKeepingAlerts(deadline time.Time, command string, onUntagged func([]byte) error) (imap.Response, error) {
	return pc.Run(deadline, command, func(response []byte) error {
		if pc.KeepAlert(response) {
			return nil
		}
		return onUntagged(response)
	})
}

// acceptStatus accepts untagged OK, which a backend may send at any time. Without an ALERT the
// text is dropped: no session owns the connection.
func acceptStatus(response []byte) error {
	if word, _ := responseName(response); word != "OK" {
		return errUnread
	}
	return nil
}

// acceptMailboxData also accepts responses about the mailbox that is being left.
func acceptMailboxData(response []byte) error {
	switch word, numbered := responseName(response); word {
	case "OK", "FLAGS", "VANISHED":
		return nil
	case "EXISTS", "RECENT", "EXPUNGE", "FETCH", "UIDFETCH":
		if numbered {
			return nil
		}
	}
	return errOutstanding
}

// responseName returns the name of an untagged response, in upper case, and whether a number
// precedes it.
func responseName(response []byte) (name string, numbered bool) {
	fields := strings.Fields(string(response[:min(len(response), 64)]))
	switch {
	case len(fields) < 2:
		return "", false
	case len(fields) > 2 && fields[1][0] >= '0' && fields[1][0] <= '9':
		return strings.ToUpper(fields[2]), true
	}
	return strings.ToUpper(fields[1]), false
}

// discardFailed closes a connection on which a command of the gateway failed, and returns the
// error.
func (p *Pool) discardFailed(pc *pooledConn, command string, err error) error {
	p.discard(pc, discardReason(err))
	return fmt.Errorf("%s at %s: %w: %w", command, p.backend.Name(), upstream.ErrUnavailable, err)
}

// discardReason maps an error of a connection to the reason of its end.
func discardReason(err error) event.DiscardReason {
	switch {
	case errors.Is(err, errUnread):
		return event.DiscardUnread
	case errors.Is(err, errOutstanding), errors.Is(err, lease.ErrProtocol):
		return event.DiscardOutstanding
	case errors.Is(err, lease.ErrBye), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return event.DiscardClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return event.DiscardUnanswered
	}
	return event.DiscardError
}
