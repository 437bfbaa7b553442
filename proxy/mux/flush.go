package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/mutant"
	"imapgate/proxy/mux/lease"
	"imapgate/proxy/mux/pool"
	"imapgate/proxy/mux/view"
)

// Bounds of the wait for an auxiliary connection and for its answers: the client
// waits as long.
const (
	auxLogin  = 2 * time.Second
	auxAnswer = 5 * time.Second
)

// maxOut is how much of our own answers is gathered before it is written.
const maxOut = 32 << 10

// flush tells the client what separates its view from the connection's, d and
// what SELECT has said, so that from here on they are one.
//
// The order matters: keywords before the flags that use them, expunges (RFC 9051
// §7.5.1) before EXISTS, flags that were said while we asked before the newer
// ones we ask for, and last the mod-sequence that all of it amounts to.
func (s *session) flush(d *view.Diff, t *told, deadline time.Time) error {
	b := s.box
	s.out = s.out[:0]
	s.flushLine(&b.flags, t.flags)
	s.flushLine(&b.permanent, t.permanent)
	if t.access != "" && t.access != b.access {
		s.out = append(append(append(s.out, "* OK ["...), t.access...), "] Access has changed.\r\n"...)
		b.access = t.access
	}
	if err := s.flushView(d, t.exists); err != nil {
		return err
	}
	if t.recent != b.recent && !s.enabled.Has(lease.Rev2) {
		b.recent = t.recent
		s.out = append(strconv.AppendUint(append(s.out, "* "...), uint64(t.recent), 10), " RECENT\r\n"...)
	}
	for _, line := range t.fetches {
		s.out = append(s.out, line...)
	}
	if err := s.flushed(); err != nil {
		return err
	}
	b.uidNext, b.next, b.deferred = t.uidNext, 0, false
	b.tracked = b.tracked && b.modseq != 0
	s.attached = true
	s.show()
	told, err := s.flushFlags(t, deadline)
	if err != nil {
		return err
	}
	if b.owes = !told; b.owes {
		b.owed = t.modseq
		s.wakeIn(time.Second)
		return nil
	}
	if t.modseq != 0 && s.enabled.Has(lease.Qresync) && t.modseq != b.modseq {
		if err := s.say("* OK [HIGHESTMODSEQ ", strconv.FormatUint(t.modseq, 10), "] Highest"); err != nil {
			return err
		}
	}
	if t.modseq != 0 { // or an earlier one holds on
		b.modseq = t.modseq
	}
	return nil
}

// flushLine tells of flags that are new.
func (s *session) flushLine(was *line, is line) {
	if is != (line{}) && is != *was {
		*was = is
		s.out = append(append(s.out, "* "...), is.String()...)
	}
}

// flushView tells what has gone and what has come.
func (s *session) flushView(d *view.Diff, exists uint32) error {
	s.box.grown = false
	if d == nil {
		return nil
	}
	if s.enabled.Has(lease.Qresync) || s.enabled.Has(lease.UIDOnly) {
		s.out = d.AppendVanished(s.out)
	} else {
		for n := range d.Expunges() {
			s.out = view.AppendExpunge(s.out, n)
			if len(s.out) < maxOut {
				continue
			}
			if err := s.flushed(); err != nil {
				return err
			}
		}
	}
	s.box.view.Apply(d)
	if exists > d.Exists() { // more have come since the snapshot
		_ = s.box.view.Grow(exists)
		s.box.grown = true
	}
	if d.Arrived() > 0 || s.box.grown {
		s.out = append(strconv.AppendUint(append(s.out, "* "...), uint64(s.box.view.Exists()), 10), " EXISTS\r\n"...)
	}
	return nil
}

// flushed writes what has been gathered.
func (s *session) flushed() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.client.Write(s.out)
	s.out = s.out[:0]
	return s.clientLost(err)
}

// flushFlags tells which flags have changed since the client was last told. It
// says no when they could not be had: they are owed then.
func (s *session) flushFlags(t *told, deadline time.Time) (bool, error) {
	b, n := s.box, s.box.view.Exists()
	switch {
	case n == 0, mutant.Is(mutant.AttachFlags):
		return true, nil
	case b.modseq != 0 && t.modseq == b.modseq && !b.owes:
		return true, nil // nothing has changed at all
	case s.asksAside(t):
		return s.flagsAside(t, deadline)
	case b.modseq != 0 && t.modseq != 0 && s.enabled.Has(lease.Condstore):
		return s.flagsSince(n, b.modseq, deadline)
	}
	return s.allFlags(n, deadline)
}

// asksAside says whether changes of flags are to be asked for on another
// connection than the client's. Their messages are then known by UID alone.
func (s *session) asksAside(t *told) bool {
	b := s.box
	return b.modseq != 0 && (t.modseq != b.modseq || b.owes) &&
		!s.enabled.Has(lease.Condstore) && s.backend.settings.Consistent && b.isASCII()
}

// allFlags tells all flags, because nobody knows which have changed. Of a large
// mailbox that is too much.
func (s *session) allFlags(n uint32, deadline time.Time) (bool, error) {
	if n > uint32(s.backend.settings.FlagsFullMax) { // a setting of at most millions
		return false, &ending{audit.MailboxTooLarge, byeAway, errors.New("flags may have changed, nobody knows which")}
	}
	return s.askFlags(fmt.Sprintf("FETCH 1:%d (UID FLAGS)", n), deadline)
}

// flagsSince asks the client's own connection, which says what the client has
// enabled (RFC 7162 §3.1.4.1).
func (s *session) flagsSince(n uint32, since uint64, deadline time.Time) (bool, error) {
	return s.askFlags(fmt.Sprintf("FETCH 1:%d (UID FLAGS MODSEQ) (CHANGEDSINCE %d)", n, since), deadline)
}

// askFlags runs a FETCH of ours whose answers are the client's. FETCH by number
// brings no EXPUNGE along.
func (s *session) askFlags(command string, deadline time.Time) (bool, error) {
	res, err := s.up.Run(deadline, command, s.overhear)
	if err != nil {
		return false, s.ranInto(err)
	}
	return res.Name == "OK", nil
}

// overhear passes a response on that came while a command of ours ran.
func (s *session) overhear(response []byte) error {
	seg := imap.Segment{Bytes: response, End: true}
	v, err := s.untagged(seg)
	if err != nil || v == drop {
		return err
	}
	return s.relate(response)
}

// alert passes a response on if people are to be shown it, of those that are
// otherwise for us alone.
func (s *session) alert(response []byte) error {
	if !imap.IsAlert(response) {
		return nil
	}
	return s.relate(response)
}

// relate tells the client of whole responses, none for none.
func (s *session) relate(responses []byte) error {
	if len(responses) == 0 {
		return nil
	}
	if s.overheard != nil {
		s.overheard = append(s.overheard, responses...)
		return nil
	}
	_, err := s.client.Write(responses)
	return s.clientLost(err)
}

// ranInto tells the client's end from the upstream's in an error of Run.
func (s *session) ranInto(err error) error {
	if e := (*ending)(nil); errors.As(err, &e) {
		return e
	}
	return s.upstreamLost(err)
}

// flagsAside asks an auxiliary connection, because a client that has enabled
// nothing must not have its own connection asked about mod-sequences: it would
// be told of them ever after. What it says is newer than what the lease has
// said, never older, since it selects the mailbox later.
func (s *session) flagsAside(t *told, deadline time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(s.hub.ctx, auxLogin)
	defer cancel()
	seen, ok := told{}, false
	s.out = s.out[:0]
	if soon := time.Now().Add(auxAnswer); soon.Before(deadline) {
		deadline = soon
	}
	if aux, err := s.aux(ctx); err == nil {
		_ = s.relate(aux.Alerts()) // a client that is gone is missed by the next write
		if seen, ok = s.changedFlags(aux, deadline); ok {
			s.account.ReturnAux(aux)
		} else {
			s.account.Destroy(aux, metrics.DiscardError)
		}
	}
	switch n := s.box.view.Exists(); {
	case !ok && n <= uint32(s.backend.settings.FlagsFullMax):
		return s.allFlags(n, deadline)
	case !ok:
		return false, nil // owed
	}
	if changed := s.out; len(changed) > 0 { // a keyword may be so new that only aux has said it, or so that it has not
		s.out = nil
		s.flushLine(&s.box.flags, s.box.flags.and(seen.flags))
		s.out = append(s.out, changed...)
	}
	if mutant.Is(mutant.MFromAux) {
		t.modseq = seen.modseq
	}
	return true, s.flushed()
}

// aux waits a little for an auxiliary connection that others of the user's
// sessions, which were lost with this one, may just have. There is none where the
// user does not live any more: the session goes on without.
func (s *session) aux(ctx context.Context) (*lease.Conn, error) {
	return s.auxWhile(ctx, func() bool { return true })
}

// auxWhile is aux, but waits no longer than that is said to be worth it.
func (s *session) auxWhile(ctx context.Context, worthIt func() bool) (*lease.Conn, error) {
	if err := s.stays(ctx); err != nil {
		return nil, err
	}
	for range 50 {
		aux, err := s.account.Aux(ctx)
		if !errors.Is(err, pool.ErrBusy) || !worthIt() {
			return aux, err
		}
		s.hub.pause(20 * time.Millisecond)
	}
	return nil, pool.ErrBusy
}

// changedFlags gathers what has changed since the mailbox's mod-sequence, as
// FETCH responses in the client's numbers. It says no when aux is of no more use.
func (s *session) changedFlags(aux *lease.Conn, deadline time.Time) (told, bool) {
	var seen told
	examine := *s.box
	examine.verb = "EXAMINE" // so that \Recent stays whose it is
	name, err := examine.command(aux.Caps())
	if err != nil {
		return seen, false
	}
	aux.Selected = true
	res, err := aux.Run(deadline, name, func(response []byte) error { seen.read(response); return s.alert(response) })
	if err != nil || res.Name != "OK" || seen.validity != s.box.validity {
		return seen, false
	}
	ask := fmt.Sprintf("UID FETCH 1:%d (FLAGS) (CHANGEDSINCE %d)", max(s.box.view.Max(), 1), s.box.modseq)
	res, err = aux.Run(deadline, ask, func(response []byte) error {
		if imap.HasWord(response[len("* "):], "FLAGS") { // newer keywords than EXAMINE knew
			seen.flags.keep(response[len("* "):])
		}
		s.out = appendFlags(s.out, response, &s.box.view)
		return s.alert(response)
	})
	return seen, err == nil && res.Name == "OK"
}

// appendFlags writes the flags of a FETCH response with the number that the
// message has in v. One without a UID is numbered as on its own connection, and
// is left out; so is a message that v has not.
func appendFlags(dst, response []byte, v *view.View) []byte {
	_, rest, ok := leadingNumber(response[len("* "):])
	if !ok || !imap.HasWord(rest, "FETCH") {
		return dst
	}
	uid, ok := uidIn(rest)
	if !ok {
		return dst
	}
	n, ok := v.Number(uid)
	from := bytes.Index(rest, []byte("FLAGS ("))
	if !ok || from < 0 {
		return dst
	}
	to := bytes.IndexByte(rest[from:], ')')
	if to < 0 {
		return dst
	}
	dst = strconv.AppendUint(append(dst, "* "...), uint64(n), 10)
	dst = append(append(dst, " FETCH (UID "...), strconv.FormatUint(uint64(uid), 10)...)
	dst = append(append(dst, ' '), rest[from:from+to+1]...)
	return append(dst, ")\r\n"...)
}
