package command

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"imapgate/internal/imap"
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a NOOP", "a FETCH 1:* (BODY[HEADER.FIELDS (A)] MODSEQ)", "a COPY 1,3:4 {5}\r\nINBOX", "a MOVE * \"a\\\"\"", "a REPLACE 4 x {3}",
		"a UID SEARCH RETURN (SAVE) OR NOT (1:3) MODSEQ \"/f\" all 5", "a SELECT {5+}\r\nInbox (QRESYNC (1 2 (3 4)))", "a STORE 1 (UNCHANGEDSINCE 5) FLAGS x",
		"a LIST \"\" * RETURN (STATUS (HIGHESTMODSEQ))", "a ENABLE A B", "a APPEND {5}", "a UID COPY 1 x", "a SORT (DATE) utf-8 $", "a STATUS x (HIGHESTMODSEQ)",
		"a NOTIFY NONE", "a ESEARCH IN (selected) 1", "a THREAD REFS x XUNKNOWN 5", "a X {2}\r\n\r\n", "a UID",
		"a SETACL x y z", "a RENAME \"\\\"\" {1+}\r\nb", "a RESETKEY", "a COPY 1 \"\\"} {
		f.Add([]byte(s + "\r\n"))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		before := bytes.Clone(raw)
		head, headErr := Lookup(firstLine(raw))
		props, err := Parse(raw)
		if !bytes.Equal(before, raw) {
			t.Fatal("Parse modified the command")
		}
		switch {
		case headErr != nil:
			if !errors.Is(err, headErr) || head.Spec != nil {
				t.Fatalf("Lookup: %v, Parse: %v", headErr, err)
			}
			return
		case err != nil && !errors.Is(err, ErrSyntax):
			t.Fatal(err)
		case err != nil && (props.Set != nil || props.Mailbox != "" || props.EnablesCondstore || props.Retryable || props.Pins == (head.Spec.Upstream == NoUpstream)):
			t.Fatalf("not parsed, but has %+v", props)
		}
		if err == nil {
			checkFraming(t, raw, head.Spec)
		}
		checkSetPos(t, raw, props)
		checkRewrite(t, raw, props)
		mailbox, destination := props.Mailboxes(head.Spec, raw)
		if len(mailbox) > len(raw) || len(destination) > len(raw) || strings.Contains(mailbox+destination, "\x00") {
			t.Fatalf("mailboxes %q and %q", mailbox, destination)
		}
	})
}

// checkFraming verifies that a completely parsed command is one command to the reader that
// framed it: both see the same literals.
func checkFraming(t *testing.T, raw []byte, spec *Spec) {
	switch spec.argSyntax {
	case anyArgs, mailboxFirstArgs, mailboxArgs, notifyArgs, setArgs, appendArgs, replaceArgs: // not parsed to the end
		return
	}
	if !bytes.HasSuffix(raw, []byte("\r\n")) {
		return
	}
	r := imap.NewReader(bytes.NewReader(raw), imap.Commands, 1<<20)
	for n := 0; ; {
		seg, err := r.Next()
		if err != nil {
			t.Fatalf("%q: %v after %d bytes", raw, err, n)
		}
		if n += len(seg.Bytes); seg.End && n == len(raw) {
			return
		}
		if seg.End {
			t.Fatalf("%q is a command of %d bytes", raw, n)
		}
	}
}

// checkSetPos verifies that SetPos is the position of Set, and that Set is valid.
func checkSetPos(t *testing.T, raw []byte, f Properties) {
	if f.Set == nil {
		return
	}
	if &raw[f.SetPos] != &f.Set[0] || f.SetPos+len(f.Set) > len(raw) || f.SetPos <= f.namePos {
		t.Fatalf("the set %q is not at %d", f.Set, f.SetPos)
	}
	if _, err := imap.ParseSet(string(f.Set)); err != nil && !bytes.Contains(f.Set, []byte("4294967295")) {
		t.Fatalf("the set %q: %v", f.Set, err)
	}
}

// checkRewrite verifies that only the name and the set change, and that the UID command is
// otherwise equal.
func checkRewrite(t *testing.T, raw []byte, f Properties) {
	const uids = "7,9:*"
	out, ok := RewriteAsUID(raw, f, uids)
	if ok != (f.ExpungePolicy == TranslateNumbers) {
		t.Fatalf("%q, %v", out, ok)
	}
	if !ok {
		return
	}
	if !f.UsesNumbers || f.Set == nil || f.Retryable {
		t.Fatalf("rewritten, but has %+v", f)
	}
	tail := len(raw) - f.SetPos - len(f.Set)
	if len(out) != len(raw)+len("UID ")+len(uids)-len(f.Set) || !bytes.Equal(out[:f.namePos], raw[:f.namePos]) ||
		!bytes.Equal(out[len(out)-tail:], raw[len(raw)-tail:]) || !bytes.Equal(out[f.namePos+4:f.SetPos+4], raw[f.namePos:f.SetPos]) {
		t.Fatalf("%q became %q", raw, out)
	}
	if bytes.Equal(f.Set, []byte("*")) || !bytes.ContainsAny(f.Set, ",:") {
		uid, _ := RewriteAsUID(raw, f, "7") // REPLACE takes one message
		out = uid
	}
	again, err := Parse(out)
	if err != nil || again.UsesNumbers || again.ExpungePolicy != FlushExpunges || again.Mailbox != f.Mailbox {
		t.Fatalf("%q became %q: %+v, %v", raw, out, again, err)
	}
}
