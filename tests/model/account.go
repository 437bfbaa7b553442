package model

import (
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
)

// newViolation is a *Violation in an error.
func newViolation(format string, args ...any) error {
	return &Violation{Text: fmt.Sprintf(format, args...)}
}

// markPrefix begins the subject of every message; the user's name and a dash follow.
const markPrefix = "zz-"

// Account is what is known for certain of one user's mail: what was appended
// with which answer, and which content each UID of INBOX has. All sessions of
// the user share it.
type Account struct {
	// Set once.
	user string

	// Guarded by mu.
	mu           sync.Mutex
	uidValidity  uint32
	subjects     map[uint32]string // subjects in INBOX, by UID, of all time
	uids         map[string]uint32 // and the other way round
	subjectCount int               // subjects handed out
	appended     int               // answered OK
	unanswered   int               // not answered
}

func newAccount(user string) *Account {
	return &Account{user: user, subjects: map[uint32]string{}, uids: map[string]uint32{}}
}

// nextSubject is a subject that no other message has.
func (a *Account) nextSubject() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.subjectCount++
	return fmt.Sprintf("%s%s-%d", markPrefix, a.user, a.subjectCount)
}

// recordContent notes which message a UID of INBOX is. A UID never changes its
// content, and no message is in the mailbox twice.
func (a *Account) recordContent(uid uint32, subject string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if previous, ok := a.subjects[uid]; ok && previous != subject {
		return newViolation("UID %d is %q, and was %q", uid, subject, previous)
	}
	if otherUID, ok := a.uids[subject]; ok && otherUID != uid {
		return newViolation("%q is there twice, as UID %d and %d", subject, otherUID, uid)
	}
	a.subjects[uid], a.uids[subject] = subject, uid
	return nil
}

// recordUIDValidity notes the UIDVALIDITY of INBOX, which never changes here.
func (a *Account) recordUIDValidity(v uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uidValidity != 0 && a.uidValidity != v {
		return newViolation("UIDVALIDITY is %d, and was %d", v, a.uidValidity)
	}
	a.uidValidity = v
	return nil
}

// countAppend counts an answer to APPEND; "" is none. NO means it did not happen.
func (a *Account) countAppend(status string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch status {
	case "OK":
		a.appended++
	case "":
		a.unanswered++
	}
}

// checkArrivals compares the number of messages that ever came to INBOX with the
// answers: each OK is one message, each missing answer at most one.
func (a *Account) checkArrivals(n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n < a.appended || n > a.appended+a.unanswered {
		return newViolation("%d messages arrived where %d were answered OK and %d not at all", n, a.appended, a.unanswered)
	}
	return nil
}

// checkForeign finds content of somebody else in what a session of the user got.
func (a *Account) checkForeign(s string) error {
	for at := strings.Index(s, markPrefix); at >= 0; {
		rest := s[at+len(markPrefix):]
		if name, _, ok := strings.Cut(rest, "-"); ok && name != a.user && len(name) <= 16 {
			return newViolation("content of %s in a session of %s", name, a.user)
		}
		next := strings.Index(rest, markPrefix)
		if next < 0 {
			return nil
		}
		at += len(markPrefix) + next
	}
	return nil
}

// makeMessage is the one message with a subject. Its body says things that a parser
// must not believe.
func makeMessage(subject string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "From: a@example.org\r\nSubject: %s\r\n\r\n%s\r\n", subject, subject)
	h := fnv.New32a()
	_, _ = h.Write([]byte(subject)) // never fails
	n := int(h.Sum32() % 24)
	if h.Sum32()%64 == 0 {
		n = 400
	}
	for i := range n {
		fmt.Fprintf(&b, "* %d EXPUNGE\r\n* %d EXISTS\r\na%d OK done {17}\r\n* BYE %s\r\n", i+1, i, i, subject)
	}
	return b.String()
}

// parseSubject reads the subject of a message or of its header.
func parseSubject(header string) (string, bool) {
	_, rest, ok := strings.Cut("\r\n"+header, "\r\nSubject: ")
	if !ok {
		return "", false
	}
	subject, _, ok := strings.Cut(rest, "\r\n")
	return subject, ok
}

// recordAppend takes the answer to an APPEND of a subject.
func (a *Account) recordAppend(subject string, r Result) error {
	a.countAppend(r.Status)
	if !r.isOK() {
		return nil
	}
	var validity, uid uint32
	if n, err := fmt.Sscanf(r.Arg, "%d %d", &validity, &uid); r.Code != "APPENDUID" || n != 2 {
		return newViolation("APPEND is answered %q: %v", r.Line, err)
	}
	if err := a.recordUIDValidity(validity); err != nil {
		return err
	}
	return a.recordContent(uid, subject)
}
