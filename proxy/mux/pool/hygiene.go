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

	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/mutant"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/upstream"
)

// Of a connection with which nothing is under way, these are doubts.
var (
	errUnread      = errors.New("backend has said something unasked")
	errOutstanding = errors.New("an answer to a command of the last session")
	errSelected    = errors.New("the mailbox may still be selected")
)

const (
	maxUnasked = 16                     // responses that are read before a connection is handed out
	unasked    = 100 * time.Millisecond // for one of them, which has begun to come
)

// clean makes a connection fit to wait, or says why it is not: a command of ours
// is answered last, so that nothing of the last session's is under way.
func (p *Pool) clean(h *held) (reason string) {
	switch {
	case p.cfg.ReuseTTL <= 0:
		return metrics.DiscardTTL
	case h.Age() >= p.cfg.MaxAge:
		return metrics.DiscardAge
	case h.term != p.term(h.owner):
		return metrics.DiscardCredentials
	case !h.Between():
		return metrics.DiscardOutstanding
	case unread(h):
		return metrics.DiscardUnread
	}
	deadline, ask := time.Now().Add(p.cfg.Answer), h.unselect
	if !h.Selected {
		ask = func(deadline time.Time) error { return h.must(deadline, "NOOP", greetings) }
	}
	switch err := ask(deadline); {
	case errors.Is(err, errSelected):
		p.stuck.Do(func() {
			p.log.Warn("backend gives no way to leave a mailbox, so connections with one selected are not reused", zap.Error(err))
		})
		return metrics.DiscardSelected
	case err != nil:
		return reasonOf(err)
	}
	h.Selected = false
	if unread(h) {
		return metrics.DiscardUnread
	}
	h.heard = time.Now()
	return ""
}

// unselect leaves the mailbox without expunging anything: by UNSELECT (RFC 3691), or by
// opening INBOX read-only and closing that. The mailbox that was selected is never
// closed: CLOSE would expunge.
func (h *held) unselect(deadline time.Time) error {
	if h.Caps().Has("UNSELECT") || h.Caps().Has("IMAP4REV2") {
		return h.must(deadline, "UNSELECT", leftovers)
	}
	res, err := h.ask(deadline, "EXAMINE INBOX", leftovers)
	switch {
	case err != nil:
		return err
	case res.Name != "OK", res.Code != "READ-ONLY":
		return fmt.Errorf("%w: EXAMINE INBOX %s", errSelected, upstream.Describe(res))
	}
	return h.must(deadline, "CLOSE", greetings)
}

// fit makes a connection that has waited fit to be handed out, or says why it is
// not.
func (p *Pool) fit(ctx context.Context, h *held) (reason string) {
	if h.User() != h.owner.user.name {
		p.log.Error("connection is another user's than it waits for", zap.Stringer("user", h.owner.user.name))
		return metrics.DiscardError
	}
	if time.Since(h.heard) >= p.cfg.NoopAfter {
		deadline := time.Now().Add(p.cfg.Answer)
		if limit, ok := ctx.Deadline(); ok && limit.Before(deadline) {
			deadline = limit
		}
		if err := h.must(deadline, "NOOP", greetings); err != nil {
			return reasonOf(err)
		}
	}
	for range maxUnasked {
		if !unread(h) {
			h.heard = time.Now()
			return ""
		}
		if err := h.hear(); err != nil {
			return reasonOf(err)
		}
	}
	return metrics.DiscardUnread
}

// unread says whether a connection has something to say, or has ended.
func unread(h *held) bool {
	return !mutant.Is(mutant.BufferCheck) && (!h.Between() || h.Pending())
}

// hear reads one response that nobody has asked for.
func (h *held) hear() error {
	h.Limit(time.Now().Add(unasked))
	defer h.Limit(time.Time{})
	response, err := h.Untagged()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errUnread
	}
	if err != nil {
		return err
	}
	if h.Heed(response) {
		return nil
	}
	return greetings(response)
}

// must runs a command of ours that is to be answered OK.
func (h *held) must(deadline time.Time, command string, each func([]byte) error) error {
	res, err := h.ask(deadline, command, each)
	if err == nil && res.Name != "OK" {
		err = fmt.Errorf("%w: %s %s", lease.ErrProtocol, command, res.Name)
	}
	return err
}

// ask runs a command of ours. What people are to be shown waits for the next session;
// the rest is each's.
func (h *held) ask(deadline time.Time, command string, each func([]byte) error) (imap.Response, error) {
	return h.Run(deadline, command, func(response []byte) error {
		if h.Heed(response) {
			return nil
		}
		return each(response)
	})
}

// greetings are what a backend may say at any time: a status for people to read.
// Without an ALERT it is lost on a connection that is nobody's.
func greetings(response []byte) error {
	if word, _ := words(response); word != "OK" {
		return errUnread
	}
	return nil
}

// leftovers are also what a backend may say of the mailbox that is being left.
func leftovers(response []byte) error {
	switch word, numbered := words(response); word {
	case "OK", "FLAGS", "VANISHED":
		return nil
	case "EXISTS", "RECENT", "EXPUNGE", "FETCH", "UIDFETCH":
		if numbered {
			return nil
		}
	}
	return errOutstanding
}

// words is the name of an untagged response, in upper case, and whether a number
// comes before it.
func words(response []byte) (name string, numbered bool) {
	fields := strings.Fields(string(response[:min(len(response), 64)]))
	switch {
	case len(fields) < 2:
		return "", false
	case len(fields) > 2 && fields[1][0] >= '0' && fields[1][0] <= '9':
		return strings.ToUpper(fields[2]), true
	}
	return strings.ToUpper(fields[1]), false
}

// reasonOf is why a connection on which err came is closed.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, errUnread):
		return metrics.DiscardUnread
	case errors.Is(err, errOutstanding), errors.Is(err, lease.ErrProtocol):
		return metrics.DiscardOutstanding
	case errors.Is(err, lease.ErrBye), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE):
		return metrics.DiscardClosed
	case errors.Is(err, os.ErrDeadlineExceeded):
		return metrics.DiscardUnanswered
	}
	return metrics.DiscardError
}

// enable switches extensions on, on a connection without a mailbox (RFC 5161),
// and says which of them the backend names, as it spells them.
func (p *Pool) enable(h *held, names []string) (enabled []string, err error) {
	err = h.must(time.Now().Add(p.cfg.Answer), "ENABLE "+strings.Join(names, " "), func(response []byte) error {
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
		return greetings(response)
	})
	if err != nil {
		return nil, err
	}
	h.Enabled = h.Enabled.With(enabled...)
	h.heard = time.Now()
	return enabled, nil
}
