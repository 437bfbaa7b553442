package mux

import (
	"errors"

	"imapgate/internal/imap"
	"imapgate/proxy/relay/mux/command"
	"imapgate/proxy/relay/mux/mailbox"
)

// changesMessages reports whether a command changes the messages of its set.
func changesMessages(spec *command.Spec) bool {
	switch spec.Name {
	case "STORE", "UID STORE", "UID COPY", "UID MOVE", "UID EXPUNGE":
		return true
	}
	return false
}

// clampCommand returns a command that changes messages with its set limited to visible.
// It returns mailbox.ErrRange for numbers beyond it, mailbox.ErrNoMatch if no UID remains,
// and errPendingExpunges if the limit is unknown.
func clampCommand(raw []byte, spec *command.Spec, visible mailbox.VisibleRange) ([]byte, error) {
	facts, err := command.Parse(raw)
	if err != nil || facts.Set == nil {
		return raw, nil // "$", or no message set
	}
	set, err := imap.ParseSet(string(facts.Set))
	if err != nil {
		return nil, errPendingExpunges
	}
	var clamped imap.Set
	if spec.Name == "STORE" {
		clamped, err = visible.ClampNumbers(set)
	} else {
		clamped, err = visible.ClampUIDs(set)
	}
	switch {
	case errors.Is(err, mailbox.ErrUnknownUID):
		return nil, errPendingExpunges
	case err != nil:
		return nil, err
	case clamped == nil:
		return raw, nil
	}
	rewritten := append([]byte(nil), raw[:facts.SetPos]...)
	rewritten = append(rewritten, clamped.String()...)
	return append(rewritten, raw[facts.SetPos+len(facts.Set):]...), nil
}
