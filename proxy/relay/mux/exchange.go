package mux

import (
	"imapgate/internal/event"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/mailbox"
	"time"
)

// exchange is a client, its mailbox and its upstream, and what passes between them: it
// relays commands and responses, and sends commands of the gateway. Its methods return a
// loss of the upstream as an error; those of session recover from it.
type exchange struct {
	// Set once.
	hub       *Hub
	live      *relay.Session
	onWake    func() // session.wake
	canResume bool   // the mode is Resume

	// Owned by the session's goroutine.
	client      clientSide
	upstream    upstreamSide
	mailbox     *mailbox.Mailbox // nil: none selected
	metricState event.State      // state under which the session is counted
	wakeTimer   *time.Timer      // calls onWake; nil: never scheduled
	wakeAt      time.Duration    // hub uptime at which wakeTimer fires, or has fired
}
