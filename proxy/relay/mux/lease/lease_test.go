package lease

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/wire"
	"imapgate/proxy/upstream"
)

// newTestConn accepts one login and then answers each command with script's result, in which
// {T} is the command's tag. It ends when the connection ends.
func newTestConn(t *testing.T, script func(command string) string) *Conn {
	t.Helper()
	s := testkit.StartIMAP(t, func(c *testkit.Conn) {
		_ = c.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hello")
		for {
			tag, command, err := c.ReadCommand()
			if err != nil {
				return
			}
			answer := "{T} OK [CAPABILITY IMAP4rev1 UNSELECT] in\r\n"
			if !strings.HasPrefix(command, "AUTHENTICATE") {
				answer = script(command)
			}
			_, _ = io.WriteString(c, strings.ReplaceAll(answer, "{T}", tag))
		}
	})
	user := testkit.Must(identity.Canonicalize("alice", ""))(t)
	b := upstream.New(testbed.WithDefaults(upstream.Config{Name: "b", Settings: upstream.Settings{Address: s.Addr(), TLS: event.NoTLS}}), upstream.Hooks{}, zap.NewNop())
	up, err := b.Login(context.Background(), upstream.Request{User: user, Password: identity.NewSecret("pw")})
	if err != nil {
		t.Fatal(err)
	}
	c := new(Conn)
	c.Open(up, &wire.Resources{Buffers: parking.NewBufferPool(), Clock: relay.NewClock()})
	t.Cleanup(func() { _ = c.Close() })
	if c.User() != user || !c.Caps().Has("UNSELECT") || c.Age() > time.Minute {
		t.Errorf("%v %v %v", c.User(), c.Caps(), c.Age())
	}
	return c
}

func testDeadline() time.Time { return time.Now().Add(10 * time.Second) }

func TestRunReturnsWholeResponses(t *testing.T) {
	big := strings.Repeat("x", 3*parking.LargeBuffer)
	fetch := fmt.Sprintf("* 1 FETCH (BODY[] {%d}\r\n%s FLAGS (\\Seen))\r\n", len(big), big)
	c := newTestConn(t, func(command string) string {
		switch command {
		case "FETCH":
			return "* 2 EXISTS\r\n" + fetch + "* OK {5}\r\n* LIST () NIL {0}\r\n\r\n* byebye 1\r\n{T} OK [X y] fetched\r\n"
		case "LONG":
			return "* SEARCH " + big + "\r\n{T} NO not really\r\n"
		}
		return "{T} BAD what\r\n"
	})
	var got []string
	keep := func(b []byte) error { got = append(got, string(b)); return nil }
	res, err := c.Run(testDeadline(), "FETCH", keep)
	want := []string{"* 2 EXISTS\r\n", fetch, "* OK {5}\r\n", "* LIST () NIL {0}\r\n\r\n", "* byebye 1\r\n"}
	if err != nil || res.Name != "OK" || res.Code != "X" || res.Text != "fetched" || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%v %v, %d responses", res, err, len(got))
	}
	got = nil
	res, err = c.Run(testDeadline(), "LONG", keep)
	if err != nil || res.Name != "NO" || len(got) != 1 || got[0] != "* SEARCH "+big+"\r\n" {
		t.Errorf("%v %v, %d responses", res, err, len(got))
	}
	if res, err = c.Run(testDeadline(), "X", keep); err != nil || res.Name != "BAD" {
		t.Error(res, err)
	}
	if c.ReleaseBuffers(); c.BufferSize() != 0 || c.responseBuf != nil {
		t.Error("an idle connection has buffers")
	}
}

func TestRunReportsFatalResponses(t *testing.T) {
	for reply, want := range map[string]error{
		"* BYE going\r\n": ErrBye,
		"* bye\r\n":       ErrBye,
		"* 1 EXISTS\r\n* BYE [UNAVAILABLE] x\r\n": ErrBye,
		"A1 OK another's\r\n":                     ErrProtocol,
		"{T}0 OK nearly\r\n":                      ErrProtocol,
		"+ go on\r\n":                             ErrProtocol,
		"\r\n":                                    ErrProtocol,
		"*\r\n":                                   ErrProtocol,
		"{T} FETCH 1\r\n":                         ErrProtocol,
		"* OK bare\n":                             ErrProtocol,
		"* X {99999999999999999999}\r\n":          ErrProtocol,
		"* X {16777217}\r\n":                      ErrResponseTooLarge,
		"* X {9223372036854775807}\r\n":           ErrResponseTooLarge,
		"* X {16777100}\r\n":                      ErrResponseTooLarge, // including the rest of the response
		"* stop\r\n":                              errStop,
		"* X {10}\r\nhalf":                        os.ErrDeadlineExceeded,
		"":                                        os.ErrDeadlineExceeded,
		"* OK " + strings.Repeat("y", 9000) + "\r\n* BYE": os.ErrDeadlineExceeded,
	} {
		c := newTestConn(t, func(string) string {
			if strings.HasPrefix(reply, "* X {16777100}") {
				return reply + strings.Repeat("z", 16777100) + strings.Repeat("y", 200) + "\r\n"
			}
			return reply
		})
		deadline := testDeadline()
		if want == os.ErrDeadlineExceeded {
			deadline = time.Now().Add(20 * time.Millisecond)
		}
		_, err := c.Run(deadline, "X", func(b []byte) error {
			if string(b) == "* stop\r\n" {
				return errStop
			}
			return nil
		})
		if !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", reply, err, want)
		}
	}
}

// A budget for many responses does not extend the limit of one.
func TestResponseSizeIsLimitedWhateverTheBudget(t *testing.T) {
	for _, reply := range []string{
		"* 1 FETCH (BODY[] {16777217}\r\n",
		"* 1 FETCH (BODY[] {900000000}\r\n",
		strings.Repeat("* 1 FETCH (BODY[] {8388608}\r\n"+strings.Repeat("z", 8388608), 2),
		"* VANISHED (EARLIER) " + strings.Repeat("1,", 8<<20) + "1\r\n",
	} {
		c := newTestConn(t, func(string) string { return reply })
		if _, err := c.Write([]byte("a SELECT x\r\n")); err != nil {
			t.Fatal(err)
		}
		budget := 1 << 30
		if _, err := c.ReadResponse(&budget); !errors.Is(err, ErrResponseTooLarge) {
			t.Errorf("%.40q: %v", reply, err)
		}
	}
}

var errStop = errors.New("stop")

func TestRunClearsItsDeadline(t *testing.T) {
	c := newTestConn(t, func(command string) string {
		if command == "HANG" {
			return ""
		}
		return "* OK ready\r\n"
	})
	if _, err := c.Run(time.Now().Add(10*time.Millisecond), "HANG", nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x GO\r\n")); err != nil {
		t.Fatal(err)
	}
	if b, err := c.ReadUntagged(); err != nil || string(b) != "* OK ready\r\n" {
		t.Error(string(b), err)
	}
}

func TestReadUntaggedRejectsOtherResponses(t *testing.T) {
	for reply, want := range map[string]error{
		"* OK still here\r\n": nil, "* LIST () NIL {1}\r\nx\r\n": nil,
		"A1 OK\r\n": ErrProtocol, "+ x\r\n": ErrProtocol, "*x\r\n": ErrProtocol, "* BYE\r\n": ErrBye,
	} {
		c := newTestConn(t, func(string) string { return reply })
		if _, err := c.Write([]byte("x y\r\n")); err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(testDeadline())
		b, err := c.ReadUntagged()
		if !errors.Is(err, want) || want == nil && string(b) != reply {
			t.Errorf("%q: %q %v", reply, b, err)
		}
	}
}

func TestTagsAreUniqueAndHaveThePrefix(t *testing.T) {
	a, b := &Conn{tagPrefix: "P"}, map[string]bool{}
	for range 2000 {
		tag := a.NextTag()
		if b[tag] || !strings.HasPrefix(tag, a.TagPrefix()) {
			t.Fatalf("tag %q", tag)
		}
		b[tag] = true
	}
	one, other := newTestConn(t, nil), newTestConn(t, nil)
	if one.TagPrefix() == other.TagPrefix() || len(one.TagPrefix()) != 13 {
		t.Errorf("prefixes %q %q", one.TagPrefix(), other.TagPrefix())
	}
}
