package authhttp

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"imapgate/internal/identity"
)

const (
	maxDelay    = 30 * time.Second // a server cannot hold a client up for longer at a time
	maxOverride = 1024             // bytes of Auth-User and Auth-Pass
)

// Response is what an auth server says of a login that is right.
type Response struct {
	BackendAddr netip.AddrPort  // the backend; not valid when the server named none
	LoginName   string          // for the login at the backend; "" is the client's own
	Password    identity.Secret // for the login at the backend; zero is the client's own
}

// Denial is an auth server's refusal. The reason that the server gives is kept
// nowhere: it may repeat the password.
type Denial struct {
	Delay time.Duration // until the client may be told; at most 30 s
}

func (d *Denial) Error() string { return ErrDenied.Error() }

// Unwrap is ErrDenied.
func (d *Denial) Unwrap() error { return ErrDenied }

// result is one of three: a denial, a time after which to ask again, an answer.
type result struct {
	denial     *Denial
	retryAfter time.Duration // 0: it is an answer
	response   Response
}

// parseHeader makes sense of a response. As nginx, it looks at the header alone, not at
// the status line. Unlike nginx, it takes no answer for a yes that does not say
// so, and none that says something twice.
func parseHeader(h http.Header) (result, error) {
	for _, name := range []string{"Auth-Status", "Auth-Server", "Auth-Port", "Auth-User", "Auth-Pass", "Auth-Wait"} {
		if len(h[name]) > 1 {
			return result{}, fmt.Errorf("the answer has %s twice", name)
		}
	}
	delay := parseWait(h.Get("Auth-Wait"))
	switch h.Get("Auth-Status") {
	case "":
		return result{}, errors.New("the answer has no Auth-Status")
	case "OK":
		resp, err := parseAccepted(h)
		return result{response: resp}, err
	case "WAIT":
		return result{retryAfter: max(delay, time.Second)}, nil // nginx would ask again and again without a pause
	default:
		return result{denial: &Denial{Delay: delay}}, nil
	}
}

// parseWait is the time in Auth-Wait, in seconds. As nginx, what is no number is
// no wait.
func parseWait(text string) time.Duration {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil || seconds > uint64(maxDelay/time.Second) {
		return maxDelay // only too long a number is left
	}
	return time.Duration(seconds) * time.Second
}

// parseAccepted reads the rest of an answer with the status OK.
func parseAccepted(h http.Header) (resp Response, err error) {
	if resp.BackendAddr, err = parseServer(h.Get("Auth-Server"), h.Get("Auth-Port")); err != nil {
		return Response{}, err
	}
	if resp.LoginName, err = parseOverride(h, "Auth-User"); err != nil {
		return Response{}, err
	}
	password, err := parseOverride(h, "Auth-Pass")
	if err != nil {
		return Response{}, err
	}
	if password != "" {
		resp.Password = identity.NewSecret(password)
	}
	return resp, nil
}

// parseServer is where the user's mailbox lives. Errors repeat nothing of the answer. No name is resolved here, so no
// resolver decides where a password goes.
func parseServer(server, port string) (netip.AddrPort, error) {
	if server == "" && port == "" {
		return netip.AddrPort{}, nil
	}
	addr, err := netip.ParseAddr(server)
	if err != nil || addr.Zone() != "" {
		return netip.AddrPort{}, errors.New("Auth-Server is not an IP address")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, errors.New("Auth-Port is not a number from 1 to 65535")
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// parseOverride is a name or a password that replaces the client's, or "". It comes
// without escapes, as nginx reads it; with a control character in it a backend
// might take it for more than one word.
func parseOverride(h http.Header, name string) (string, error) {
	if len(h[name]) == 0 {
		return "", nil
	}
	value := h[name][0]
	if value == "" || len(value) > maxOverride || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fmt.Errorf("%s is empty, too long, or has control characters", name)
	}
	return value, nil
}
