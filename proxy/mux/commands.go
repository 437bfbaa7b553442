package mux

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/proxy/mux/command"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/wire"
)

// Bounds of what a client may send.
const (
	maxCollected = 64 << 10 // octets of all literals of a command that is held whole
	maxPassed    = 1 << 20  // octets of what follows the first line of a refused command
	maxBad       = 20       // commands in a row that are none
)

// request is the command in hand. Its slices point into the client's buffer, or
// into session.collected: until the next command is read.
type request struct {
	tag     []byte
	spec    *command.Spec
	facts   command.Facts
	whole   []byte // literals inline
	unsent  []byte // what of it is here and no backend has had
	givenUp bool   // a connection was given up over it
	syntax  bool   // not understood
	upload  command.Upload
}

// commands does what the client has asked for, as far as it has been read whole,
// and as much of it as may be outstanding at a time.
func (s *session) commands() error {
	for !s.sent.full() && s.order.Load() == nil { // what waits must not keep a session alive that is to end
		if s.pinning != "" && s.idling == nil {
			return s.pin(nil)
		}
		seg, ok, err := s.client.Ready()
		if err != nil {
			return s.garbage()
		}
		if !ok {
			return nil
		}
		if s.idling != nil {
			err = s.idled(seg)
		} else {
			s.spoken++
			s.paceCommand()
			err = s.command(seg)
		}
		if err != nil {
			return err
		}
		s.request.unsent, s.apart = nil, false
	}
	return nil
}

// garbage ends a session whose client no longer speaks in lines: nobody can tell
// where the next command begins.
func (s *session) garbage() error {
	s.apart = true
	if err := s.settle(); err != nil {
		return err
	}
	return &ending{audit.ClientProtocol, byeProtocol, nil}
}

// command does one command, of which seg is the first line.
func (s *session) command(seg imap.Segment) error {
	s.request = request{unsent: seg.Bytes}
	head, err := command.Lookup(seg.Bytes)
	if err != nil {
		return s.misread(head.Tag, seg)
	}
	s.bad = 0
	s.request.tag, s.request.spec = head.Tag, head.Spec
	s.opens(&s.request)
	if refusal := misplaced(head.Spec, seg); refusal != "" {
		return s.reject(refusal, seg)
	}
	if head.Spec.Streams {
		return s.stream(seg)
	}
	if head.Spec.Name == "" {
		return s.unknown(seg)
	}
	s.request.whole = seg.Bytes
	if !seg.End {
		if err := s.collect(seg); err != nil || s.request.whole == nil {
			return err
		}
	}
	s.request.facts, err = command.Read(s.request.whole)
	s.request.syntax = err != nil
	s.describes(&s.request)
	return s.do(&s.request)
}

// misread answers what is no command.
func (s *session) misread(tag []byte, seg imap.Segment) error {
	s.bad++
	if s.bad > maxBad {
		return s.garbage()
	}
	answer := "* BAD Invalid tag."
	if len(tag) > 0 {
		answer = string(tag) + " BAD Invalid command."
	}
	s.apart = true
	if err := s.settle(); err != nil {
		return err
	}
	if err := s.say(answer); err != nil {
		return err
	}
	return s.skip(seg, maxPassed)
}

// nextOfClient is the next segment of a command that has begun. A Part is of a line that
// is too long.
func (s *session) nextOfClient() (imap.Segment, error) {
	for {
		seg, ok, err := s.client.Ready()
		if err != nil {
			return seg, &ending{audit.ClientProtocol, byeProtocol, err}
		}
		if ok {
			return seg, nil
		}
		s.pace()
		if err := s.client.More(); err != nil {
			return seg, s.clientLost(err)
		}
	}
}

// collect reads a command with literals whole. The gateway asks for them itself:
// nothing in them decides where they go, and until the command is complete nobody
// may be told of expunges (RFC 9051 §7.5.1). One that is too large, or no command,
// is refused, and whole is nil.
func (s *session) collect(seg imap.Segment) error {
	s.collected, s.request.unsent = s.collected[:0], nil // which is in a buffer that goes
	literals := int64(0)
	for {
		s.collected = append(s.collected, seg.Bytes...)
		if seg.End {
			break
		}
		if seg.Literal.Size > 0 {
			literals += seg.Literal.Size
		}
		s.brings(seg)
		if literals > maxCollected || len(s.collected) > 2*maxCollected {
			return s.rejectCollected(" BAD [TOOBIG] Command is too large.", seg)
		}
		if seg.Kind == imap.Text && !seg.Literal.NonSync {
			if err := s.say("+ OK"); err != nil {
				return err
			}
		}
		var err error
		if seg, err = s.nextOfClient(); err != nil {
			return err
		}
		switch {
		case seg.Kind == imap.Part:
			return s.rejectCollected(lineTooLong, seg)
		case strayCR(seg):
			return s.rejectCollected(crMisplaced, seg)
		}
	}
	s.request.whole, s.request.unsent = s.collected, s.collected
	s.request.tag = s.collected[:len(s.request.tag)]
	if endless(seg) {
		s.request.whole = nil
		return s.reject(stringEndless, seg)
	}
	return nil
}

// do does a whole command.
func (s *session) do(r *request) error {
	s.inHand = r.facts.Expunge
	defer func() { s.inHand = command.ExpSync }()
	local := r.spec.Route == command.Local || r.spec.Name == "NOOP" && s.box == nil
	if r.spec.Barrier || r.facts.Pin || r.syntax || local || s.sent.has(r.tag) {
		if err := s.settle(); err != nil {
			return err
		}
	}
	if s.pinning != "" && !hasLiteral(r.whole) { // by what has been answered just now
		return s.pin(bytes.Clone(r.whole))
	}
	selects := r.spec.Expunge == command.ExpDrop
	switch {
	case r.spec.Refused, r.syntax && (local || selects && hasLiteral(r.whole)):
		return s.answer("BAD Command is not allowed now, or not understood.")
	case local:
		return s.local(r)
	case r.syntax && selects: // what is selected behind it, nobody knows
		s.pinning = audit.PinSelectBad
		return s.pin(bytes.Clone(r.whole))
	case r.syntax:
		return s.forward(r)
	}
	switch r.spec.Name {
	case "SELECT", "EXAMINE":
		return s.selecting(r)
	case "CLOSE", "UNSELECT":
		return s.closing(r)
	}
	return s.forward(r)
}

// local answers what is about the gateway, or needs no backend.
func (s *session) local(r *request) error {
	switch r.spec.Name {
	case "CAPABILITY":
		return s.say("* CAPABILITY ", s.offered.String(), "\r\n", string(r.tag), " OK Capability completed.")
	case "NOOP":
		return s.answer("OK NOOP completed.")
	case "ID":
		return s.identify(r)
	case "ENABLE":
		return s.enable(r)
	case "IDLE":
		return s.idle(r)
	}
	if err := s.say("* BYE Logging out\r\n", string(r.tag), " OK Logout completed."); err != nil {
		return err
	}
	return &ending{reason: audit.ClientLogout}
}

// enable is ENABLE (RFC 5161). The connection on which it counts is chosen, or
// made, when one is needed.
func (s *session) enable(r *request) error {
	if s.box != nil && slices.ContainsFunc(r.facts.Names, s.hides) {
		return s.answer("NO Not enabled.")
	}
	if s.box != nil { // too late (RFC 5161 §3.1), but some servers do it: this one may say
		return s.forward(r)
	}
	if s.up != nil { // as it is, another may need it; and what is enabled may have to be tried
		s.giveBack()
	}
	asked := slices.DeleteFunc(slices.Clone(r.facts.Names), s.hides)
	var names []string
	err := s.persist(s.backend.settings.HoldMax, func(*hold) (err error) {
		ctx, cancel := context.WithDeadline(s.hub.ctx, s.attempt())
		defer cancel()
		names, err = s.account.Enable(ctx, asked)
		return s.revocation(err)
	})
	if err != nil {
		return s.unattached(err)
	}
	enabled, told := s.enabled, "* ENABLED"
	for _, name := range names {
		upper := strings.ToUpper(name)
		enabled = enabled.With(upper)
		if slices.Contains(asked, upper) { // some bring others along
			told += " " + name
		}
	}
	s.enabled = enabled
	return s.say(told, "\r\n", string(r.tag), " OK Enabled.")
}

// hides says whether the client was not offered what the backend has.
func (s *session) hides(name string) bool {
	return s.account.Caps().Has(name) && !s.offered.Has(name)
}

// hasEnabled is ENABLED, as an answer to the client on its own connection.
func (s *session) hasEnabled(names []byte) {
	more := strings.Fields(string(names))
	s.enabled = s.enabled.With(more...)
	s.up.Enabled = s.up.Enabled.With(more...)
}

// forward sends a command on the lease, which is got, and brought in step, first.
func (s *session) forward(r *request) error {
	if hasLiteral(r.whole) { // which the backend may have to ask for
		if err := s.settle(); err != nil {
			return err
		}
	}
	s.aware(r)
	seen := s.horizon()
	err := s.prepare(r)
	if errors.Is(err, errGhosts) && r.facts.Expunge == command.ExpSync {
		r.unsent = nil
		return s.aside(r.entry(), r.whole)
	}
	odd, isOdd := asOdd(err)
	if isOdd { // the client may have been told what changes the meaning of its command
		err = nil
	}
	whole := r.whole
	if err == nil {
		whole, err = s.meant(r, seen)
	}
	switch {
	case isOdd && err != nil:
		r.unsent = nil
		return errors.Join(s.unattached(err), odd)
	case isOdd:
		r.unsent = whole
		return odd
	case err != nil:
		return s.unattached(err)
	}
	s.avoid(r.tag)
	s.up.Enabled = s.enabled
	s.doubtful = s.doubtful || r.syntax
	e := r.entry()
	e.pin = s.pinsFor(r)
	s.sent.add(e, whole)
	r.unsent = nil
	return s.send(whole)
}

// meant is a command as the client means it, whose view was seen when it sent it: a COPY
// by number may have come out with UIDs for its numbers, and "*" is what it knew of.
func (s *session) meant(r *request, seen horizon) ([]byte, error) {
	switch {
	case s.mapped == unmappable:
		return nil, errGhosts
	case s.mapped == noSuch:
		return nil, errNoSuch
	case s.mapped != "":
		whole, _ := command.RewriteUID(nil, r.whole, r.facts, s.mapped)
		return whole, nil
	case s.horizon() != seen && changes(r.spec):
		return seen.confine(r.whole, r.spec)
	}
	return r.whole, nil
}

// entry is the command as it is outstanding.
func (r *request) entry() entry {
	return entry{
		spec: r.spec, tag: len(r.tag), retry: r.facts.Retry, expunge: r.facts.Expunge,
		syncs: r.spec.Name == "NOOP" || r.spec.Name == "CHECK",
		aside: r.spec.Route == command.Any && !r.syntax && !r.facts.Condstore,
	}
}

// prepare makes sure of a lease in step with the client, and that the backend has
// not hung up if the command must not be sent in vain. What the command means then,
// meant says.
func (s *session) prepare(r *request) error {
	m := r.moment()
	s.mapped = ""
	for range maxTries {
		if !r.facts.Retry {
			if err := s.probe(); err != nil {
				return err
			}
		}
		if s.inStep() {
			if err := s.healed(s.catchUp(m.expunge)); err != nil { // what it brings is behind the horizon
				return err
			}
		}
		if s.inStep() {
			return nil
		}
		s.inHand = command.ExpSync // its own moment is m
		if err := s.attachIn(m, s.backend.settings.HoldMax); err != nil {
			return err
		}
		s.inHand = m.expunge
	}
	if !s.inStep() {
		return errBusy
	}
	return nil
}

// aware notes that a command makes its connection tell of mod-sequences (RFC 7162
// §3.1), if the backend can.
func (s *session) aware(r *request) {
	if caps := s.account.Caps(); r.facts.Condstore && (caps.Has(lease.Condstore) || caps.Has(lease.Qresync)) {
		s.enabled = s.enabled.With(lease.Condstore)
	}
}

// inStep says whether the lease can take a command as it came.
func (s *session) inStep() bool { return s.up != nil && (s.box == nil || s.attached) }

// pinsFor says why the session is pinned once the command is answered, unless by
// BAD; "" if it is not.
func (s *session) pinsFor(r *request) audit.Why {
	switch {
	case r.syntax && (r.spec.Name == "SELECT" || r.spec.Name == "EXAMINE"):
		return audit.PinSelectBad
	case r.syntax:
		return audit.PinSyntax
	case !r.facts.Pin:
		return ""
	case r.facts.Updates:
		return audit.PinContext
	case r.facts.Saves, r.facts.UsesSaved:
		return audit.PinSavedSearch
	}
	switch r.spec.Name {
	case "NOTIFY":
		return audit.PinNotify
	case "LANGUAGE", "COMPARATOR":
		return audit.PinLanguage
	}
	return audit.PinAnnotate
}

// avoid makes sure that no tag of ours begins as the client's does.
func (s *session) avoid(tag []byte) {
	if strings.HasPrefix(string(tag), s.up.Prefix()) {
		s.up.Rename()
	}
}

// hear reads from the backend, if it says something soon.
func (s *session) hear() error {
	err := s.up.Wait()
	if errors.Is(err, wire.ErrQuiet) {
		return nil
	}
	return s.upstreamLost(err)
}

// hearAnswer is hear where the backend owes something. One that owes it for too
// long is lost: nobody looks at the client meanwhile.
func (s *session) hearAnswer() error {
	if s.hub.shared.Clock.Now()-s.up.Since() > ticks(s.hub.cfg.Write) {
		return s.upstreamLost(wire.ErrStalled)
	}
	if err := s.doubt(); err != nil {
		return err
	}
	return s.hear()
}

// settle waits until nothing is outstanding. Losses are survived on the way.
func (s *session) settle() error {
	for !s.sent.empty() {
		if err := s.healed(s.answered()); err != nil {
			return err
		}
	}
	return nil
}

// probe reads what the backend may have said since it was last listened to, so
// that a command that must not be repeated is not sent into a connection that is
// known to be dead.
func (s *session) probe() error {
	for s.up != nil {
		more, err := s.heardMore()
		if err = s.healed(err); err != nil || !more {
			return err
		}
	}
	return nil
}

// heardMore passes on what there is, and says whether there was something.
func (s *session) heardMore() (bool, error) {
	if err := s.relay(); err != nil {
		return false, err
	}
	held, err := s.up.Held()
	if held || err != nil {
		return true, s.upstreamLost(err)
	}
	if !s.up.Stirs() {
		return false, nil
	}
	return true, s.hear()
}
