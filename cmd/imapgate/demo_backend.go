package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"
)

// demoUsers exist at both backends, as they would during a migration.
const demoUsers = "alice bob carol"

// demoBackend is a mail server in memory. Only the gateway talks to it, over
// loopback; what its library cannot do (STARTTLS in good order, ID, long lines)
// is therefore not met.
type demoBackend struct {
	// Set once.
	listener net.Listener
	server   *imapserver.Server
	ended    chan error
}

// startBackend starts a mail server whose mail says its name.
func startBackend(name, password string) (*demoBackend, error) {
	store := imapmemserver.New()
	for _, user := range strings.Fields(demoUsers) {
		u, err := mailbox(user+"@example.org", name, password)
		if err != nil {
			return nil, fmt.Errorf("backend %s: %w", name, err)
		}
		store.AddUser(u)
	}
	l, err := net.Listen("tcp", at(0))
	if err != nil {
		return nil, fmt.Errorf("backend %s: %w", name, err)
	}
	b := &demoBackend{listener: l, ended: make(chan error, 1)}
	b.server = imapserver.New(&imapserver.Options{
		NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			return store.NewSession(), nil, nil
		},
		Caps:         imap.CapSet{imap.CapIMAP4rev1: {}, imap.CapIMAP4rev2: {}},
		InsecureAuth: true, // the gateway connects over loopback
		Logger:       log.New(io.Discard, "", 0),
	})
	go b.serve()
	return b, nil
}

// serve is run as a goroutine; it ends when close is called.
func (b *demoBackend) serve() { b.ended <- b.server.Serve(b.listener) }

func (b *demoBackend) address() string { return b.listener.Addr().String() }

func (b *demoBackend) close() error {
	if err := b.server.Close(); err != nil {
		return err
	}
	return <-b.ended
}

// mailbox makes an account with some mail.
func mailbox(user, backend, password string) (*imapmemserver.User, error) {
	u := imapmemserver.NewUser(user, password)
	if backend == "west" {
		// Another UIDVALIDITY than at the other backend: the mail is not the
		// same, and a client that was moved must not believe its cache
		// (RFC 9051 §2.3.1.1).
		if err := u.Create("Moved", nil); err != nil {
			return nil, err
		}
		if err := u.Delete("Moved"); err != nil {
			return nil, err
		}
	}
	for _, folder := range []string{"INBOX", "Archive", "Sent"} {
		if err := u.Create(folder, nil); err != nil {
			return nil, err
		}
		if err := u.Subscribe(folder); err != nil {
			return nil, err
		}
	}
	for i, subject := range []string{"Hello from " + backend, "This mail is kept on " + backend, "Move me"} {
		when := time.Now().Add(time.Duration(i-3) * time.Hour)
		text := message(user, backend, subject, when)
		if _, err := u.Append("INBOX", bytes.NewReader(text), &imap.AppendOptions{Time: when}); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// message is a mail as RFC 5322 has it.
func message(to, backend, subject string, when time.Time) []byte {
	return fmt.Appendf(nil, "From: %[2]s <postmaster@%[2]s.example.org>\r\nTo: %[1]s\r\nSubject: %[3]s\r\nDate: %[4]s\r\n"+
		"Message-ID: <%[5]d@%[2]s.example.org>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+
		"You are reading this on the backend %[2]s.\r\n",
		to, backend, subject, when.Format(time.RFC1123Z), when.UnixNano())
}
