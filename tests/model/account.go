package model

import (
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
)

// newViolation returns a *Violation.
func newViolation(format string, args ...any) error {
	return &Violation{Text: fmt.Sprintf(format, args...)}
}

// markPrefix begins the subject of every message, before the user's name and a dash.
const markPrefix = "zz-"

// Account records the facts about one user's mail: the results of all APPENDs and the
// content of each UID of INBOX. All sessions of the user share it.
type Account struct {
	// Set once.
	user string

	// Guarded by mu.
	mu           sync.Mutex
	uidValidity  uint32
	subjects     map[uint32]string // every subject ever in INBOX, by UID
	uids         map[string]uint32 // the inverse of subjects
	subjectCount int               // subjects issued
	appended     int               // APPENDs answered OK
	unanswered   int               // APPENDs without a response
}

func newAccount(user string) *Account {
	return &Account{user: user, subjects: map[uint32]string{}, uids: map[string]uint32{}}
}

// nextSubject returns a subject that no other message has.
func (a *Account) nextSubject() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.subjectCount++
	return fmt.Sprintf("%s%s-%d", markPrefix, a.user, a.subjectCount)
}

// recordContent records the subject of a UID of INBOX. The content of a UID never changes,
// and no message is in the mailbox twice.
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

// recordUIDValidity records the UIDVALIDITY of INBOX, which never changes here.
func (a *Account) recordUIDValidity(v uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.uidValidity != 0 && a.uidValidity != v {
		return newViolation("UIDVALIDITY is %d, and was %d", v, a.uidValidity)
	}
	a.uidValidity = v
	return nil
}

// countAppend counts the result of an APPEND; "" means no response. After NO the message
// is not in the mailbox.
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

// checkArrivals compares n, the number of messages ever added to INBOX, with the results
// of APPEND. Each OK added one message, each missing response at most one.
func (a *Account) checkArrivals(n int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n < a.appended || n > a.appended+a.unanswered {
		return newViolation("%d messages were added; %d APPENDs were answered OK, %d have no response", n, a.appended, a.unanswered)
	}
	return nil
}

// checkForeign looks for another user's content in a response.
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

// makeMessage returns the message with a subject. Its body contains text that looks like
// IMAP responses, which a parser must not interpret.
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

// parseSubject returns the subject in a message or header.
func parseSubject(header string) (string, bool) {
	_, rest, ok := strings.Cut("\r\n"+header, "\r\nSubject: ")
	if !ok {
		return "", false
	}
	subject, _, ok := strings.Cut(rest, "\r\n")
	return subject, ok
}

// recordAppend records the result of an APPEND.
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
