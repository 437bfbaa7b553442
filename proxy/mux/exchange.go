package mux

import (
	"sync/atomic"

	"imapgate/internal/event"
	"imapgate/proxy/mux/mailbox"
)

// exchange is a client, its mailbox and its upstream, and what passes between them: it
// relays commands and responses, and sends commands of the gateway. Its methods return a
// loss of the upstream as an error; those of session recover from it.
type exchange struct {
	hub *Hub // Set once.

	// Owned by the session's goroutine.
	client      clientSide
	upstream    upstreamSide
	mailbox     *mailbox.Mailbox // nil: none selected
	metricState event.State      // state under which the session is counted

	canResume bool          // Set once. The mode is Resume.
	wakeAt    atomic.Uint32 // tick of the next wake; 0: none
}
