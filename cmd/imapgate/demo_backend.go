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

// demoUsers exist on both backends, as during a migration.
const demoUsers = "alice bob carol"

// demoBackend is a mail server in memory. Only the gateway connects to it, over
// loopback, so the gaps of its library (STARTTLS, ID, long lines) do not matter. It
// keeps its mail while it is stopped.
type demoBackend struct {
	// Set once.
	name          string
	store         *imapmemserver.Server
	users         map[string]*imapmemserver.User
	listenAddress string
	connections   atomic.Int64

	// Owned by the goroutine that starts and stops it.
	server *imapserver.Server // nil while it is stopped
	served chan error
}

// startBackend starts a mail server whose messages contain its name.
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

// start listens; after a restart, on the same address.
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

// serveBackend runs as a goroutine; it ends when the server is closed.
func serveBackend(s *imapserver.Server, l net.Listener, served chan<- error) { served <- s.Serve(l) }

func (b *demoBackend) address() string { return b.listenAddress }

// stop stops the server like a crash: its connections are aborted.
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

// deliver adds a message to a user's INBOX, also while the server is stopped.
func (b *demoBackend) deliver(user, subject string) error {
	now := time.Now()
	text := formatMessage(user+"@example.org", b.name, subject, now)
	_, err := b.users[user].Append("INBOX", bytes.NewReader(text), &imap.AppendOptions{Time: now})
	return err
}

func newMailAccount(user, backend, password string) (*imapmemserver.User, error) {
	u := imapmemserver.NewUser(user, password)
	if backend == "west" {
		// Its UIDVALIDITY differs from the other backend's: the messages are different, and
		// a client whose user was moved must not use its cache (RFC 9051 §2.3.1.1).
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

func formatMessage(to, backend, subject string, when time.Time) []byte {
	return fmt.Appendf(nil, "From: %[2]s <postmaster@%[2]s.example.org>\r\nTo: %[1]s\r\nSubject: %[3]s\r\nDate: %[4]s\r\n"+
		"Message-ID: <%[5]d@%[2]s.example.org>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"+
		"You are reading this on the backend %[2]s.\r\n",
		to, backend, subject, when.Format(time.RFC1123Z), when.UnixNano())
}
