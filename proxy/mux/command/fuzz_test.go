package command

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"imapgate/internal/imap"
)

func FuzzRead(f *testing.F) {
	for _, s := range []string{"a NOOP", "a FETCH 1:* (BODY[HEADER.FIELDS (A)] MODSEQ)", "a COPY 1,3:4 {5}\r\nINBOX", "a MOVE * \"a\\\"\"", "a REPLACE 4 x {3}",
		"a UID SEARCH RETURN (SAVE) OR NOT (1:3) MODSEQ \"/f\" all 5", "a SELECT {5+}\r\nInbox (QRESYNC (1 2 (3 4)))", "a STORE 1 (UNCHANGEDSINCE 5) FLAGS x",
		"a LIST \"\" * RETURN (STATUS (HIGHESTMODSEQ))", "a ENABLE A B", "a APPEND {5}", "a UID COPY 1 x", "a SORT (DATE) utf-8 $", "a STATUS x (HIGHESTMODSEQ)",
		"a NOTIFY NONE", "a ESEARCH IN (selected) 1", "a THREAD REFS x XUNHEARD 5", "a X {2}\r\n\r\n", "a UID",
		"a SETACL x y z", "a RENAME \"\\\"\" {1+}\r\nb", "a RESETKEY", "a COPY 1 \"\\"} {
		f.Add([]byte(s + "\r\n"))
	}
	f.Fuzz(func(t *testing.T, whole []byte) {
		before := bytes.Clone(whole)
		head, headErr := Lookup(firstLine(whole))
		facts, err := Read(whole)
		if !bytes.Equal(before, whole) {
			t.Fatal("the command was written to")
		}
		switch {
		case headErr != nil:
			if !errors.Is(err, headErr) || head.Spec != nil {
				t.Fatalf("%v, then %v", headErr, err)
			}
			return
		case err != nil && !errors.Is(err, ErrSyntax):
			t.Fatal(err)
		case err != nil && (facts.Set != nil || facts.Mailbox != "" || facts.Condstore || facts.Retry || facts.Pin == (head.Spec.Route == Local)):
			t.Fatalf("misread, and yet %+v", facts)
		}
		if err == nil {
			framed(t, whole, head.Spec)
		}
		inside(t, whole, facts)
		rewritten(t, whole, facts)
		about, to := facts.Mailboxes(head.Spec, whole)
		if len(about) > len(whole) || len(to) > len(whole) || strings.Contains(about+to, "\x00") {
			t.Fatalf("mailboxes %q and %q", about, to)
		}
	})
}

// framed checks that a command which was understood to its end is one command
// to the reader that cut it out of the stream: both see the same literals.
func framed(t *testing.T, whole []byte, s *Spec) {
	switch s.args {
	case opaque, namedArgs, mailboxArgs, notifyArgs, setArgs, appendArgs, replaceArgs: // not looked at to the end
		return
	}
	if !bytes.HasSuffix(whole, []byte("\r\n")) {
		return
	}
	r := imap.NewReader(bytes.NewReader(whole), imap.Commands, 1<<20)
	for n := 0; ; {
		seg, err := r.Next()
		if err != nil {
			t.Fatalf("%q: %v behind %d bytes", whole, err, n)
		}
		if n += len(seg.Bytes); seg.End && n == len(whole) {
			return
		}
		if seg.End {
			t.Fatalf("%q is a command of %d bytes", whole, n)
		}
	}
}

// inside checks that the set is where it is said to be, and is one.
func inside(t *testing.T, whole []byte, f Facts) {
	if f.Set == nil {
		return
	}
	if &whole[f.SetAt] != &f.Set[0] || f.SetAt+len(f.Set) > len(whole) || f.SetAt <= f.name {
		t.Fatalf("the set %q is not at %d", f.Set, f.SetAt)
	}
	if _, err := imap.ParseSet(string(f.Set)); err != nil && !bytes.Contains(f.Set, []byte("4294967295")) {
		t.Fatalf("the set %q: %v", f.Set, err)
	}
}

// rewritten checks that nothing but the name and the set changes, and that the
// UIDs' command is the same one.
func rewritten(t *testing.T, whole []byte, f Facts) {
	const uids = "7,9:*"
	out, ok := RewriteUID([]byte("!"), whole, f, uids)
	if ok != (f.Expunge == ExpTranslate) || out[0] != '!' {
		t.Fatalf("%q, %v", out, ok)
	}
	if !ok {
		return
	}
	if !f.Numbers || f.Set == nil || f.Retry {
		t.Fatalf("rewritten, and yet %+v", f)
	}
	out = out[1:]
	tail := len(whole) - f.SetAt - len(f.Set)
	if len(out) != len(whole)+len("UID ")+len(uids)-len(f.Set) || !bytes.Equal(out[:f.name], whole[:f.name]) ||
		!bytes.Equal(out[len(out)-tail:], whole[len(whole)-tail:]) || !bytes.Equal(out[f.name+4:f.SetAt+4], whole[f.name:f.SetAt]) {
		t.Fatalf("%q became %q", whole, out)
	}
	if bytes.Equal(f.Set, []byte("*")) || !bytes.ContainsAny(f.Set, ",:") {
		uid, _ := RewriteUID(nil, whole, f, "7") // REPLACE has one message
		out = uid
	}
	again, err := Read(out)
	if err != nil || again.Numbers || again.Expunge != ExpSync || again.Mailbox != f.Mailbox {
		t.Fatalf("%q became %q: %+v, %v", whole, out, again, err)
	}
}
