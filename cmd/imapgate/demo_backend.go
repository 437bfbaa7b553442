package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"
)

// demoUsers exist at both backends, as they would during a migration.
const demoUsers = "alice bob carol"

// demoBackend is a mail server in memory. Only the gateway talks to it, over
// loopback; what its library cannot do (STARTTLS in good order, ID, long lines)
// is therefore not met. Its mail is kept while it is stopped.
type demoBackend struct {
	// Set once.
	name          string
	store         *imapmemserver.Server
	users         map[string]*imapmemserver.User
	listenAddress string       // where it listens
	connections   atomic.Int64 // connections

	// Of the goroutine that starts and stops it.
	server *imapserver.Server // nil while it is stopped
	served chan error
}

// startBackend starts a mail server whose mail says its name.
func startBackend(name, password string) (*demoBackend, error) {
	b := &demoBackend{name: name, store: imapmemserver.New(), users: make(map[string]*imapmemserver.User), listenAddress: loopbackAddress(0)}
	for _, user := range strings.Fields(demoUsers) {
		u, err := newMailAccount(user+"@example.org", name, password)
		if err != nil {
			return nil, fmt.Errorf("backend %s: %w", name, err)
		}
		b.users[user] = u
		b.store.AddUser(u)
	}
	return b, b.start()
}

// start listens, the second time where it did before.
func (b *demoBackend) start() error {
	l, err := net.Listen("tcp", b.listenAddress)
	if err != nil {
		return fmt.Errorf("backend %s: %w", b.name, err)
	}
	b.listenAddress, b.served = l.Addr().String(), make(chan error, 1)
	b.server = imapserver.New(&imapserver.Options{
		NewSession: func(*imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			b.connections.Add(1)
			return b.store.NewSession(), nil, nil
		},
		Caps:         imap.CapSet{imap.CapIMAP4rev1: {}, imap.CapIMAP4rev2: {}},
		InsecureAuth: true, // the gateway connects over loopback
		Logger:       log.New(io.Discard, "", 0),
	})
	go serveBackend(b.server, l, b.served)
	return nil
}

// serveBackend is run as a goroutine; it ends when the server is closed.
func serveBackend(s *imapserver.Server, l net.Listener, served chan<- error) { served <- s.Serve(l) }

func (b *demoBackend) address() string { return b.listenAddress }

// stop stops it, as a crash would: connections are cut.
func (b *demoBackend) stop() error {
	if b.server == nil {
		return nil
	}
	server := b.server
	b.server = nil
	if err := server.Close(); err != nil {
		return err
	}
	return <-b.served
}

// deliver puts a mail into a user's INBOX, also while the server is stopped.
func (b *demoBackend) deliver(user, subject string) error {
	now := time.Now()
	text := formatMessage(user+"@example.org", b.name, subject, now)
	_, err := b.users[user].Append("INBOX", bytes.NewReader(text), &imap.AppendOptions{Time: now})
	return err
}

// newMailAccount makes an account with some mail.
func newMailAccount(user, backend, password string) (*imapmemserver.User, error) {
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
		text := formatMessage(user, backend, subject, when)
		if _, err := u.Append("INBOX", bytes.NewReader(text), &imap.AppendOptions{Time: when}); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// formatMessage is a mail as RFC 5322 has it.
func formatMessage(to, backend, subject string, when time.Time) []byte {
	return fmt.Appendf(nil, "From: %[2]s <postmaster@%[2]s.example.org>\r\nTo: %[1]s\r\nSubject: %[3]s\r\nDate: %[4]s\r\n"+
		"Message-ID: <%[5]d@%[2]s.example.org>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+
		"You are reading this on the backend %[2]s.\r\n",
		to, backend, subject, when.Format(time.RFC1123Z), when.UnixNano())
}
