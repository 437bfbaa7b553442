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
	maxDelay    = 30 * time.Second // bound of one delay that a server asks for
	maxOverride = 1024             // bytes of Auth-User and Auth-Pass
)

// Response is an auth server's result for an accepted login.
type Response struct {
	BackendAddr netip.AddrPort  // the backend; invalid if the server named none
	LoginName   string          // for the login at the backend; "" is the client's own
	Password    identity.Secret // for the login at the backend; zero is the client's own
}

// Denial is an auth server's refusal. The server's reason is dropped: it may repeat the
// password.
type Denial struct {
	Delay time.Duration // before the reply to the client; at most 30 s
}

func (d *Denial) Error() string { return ErrDenied.Error() }

// Unwrap returns ErrDenied.
func (d *Denial) Unwrap() error { return ErrDenied }

// result is one of three: a denial, a delay before the next request, or a response.
type result struct {
	denial     *Denial
	retryAfter time.Duration // 0: there is a response
	response   Response
}

// parseHeader parses a response. Like nginx, it reads the header alone and not the status line.
// Unlike nginx, it accepts a login only with an explicit status, and refuses duplicate fields.
func parseHeader(h http.Header) (result, error) {
	for _, name := range []string{"Auth-Status", "Auth-Server", "Auth-Port", "Auth-User", "Auth-Pass", "Auth-Wait"} {
		if len(h[name]) > 1 {
			return result{}, fmt.Errorf("the response has %s twice", name)
		}
	}
	delay := parseWait(h.Get("Auth-Wait"))
	switch h.Get("Auth-Status") {
	case "":
		return result{}, errors.New("the response has no Auth-Status")
	case "OK":
		resp, err := parseAccepted(h)
		return result{response: resp}, err
	case "WAIT":
		return result{retryAfter: max(delay, time.Second)}, nil // nginx would retry without a pause
	default:
		return result{denial: &Denial{Delay: delay}}, nil
	}
}

// parseWait returns the delay in Auth-Wait, which is in seconds. Like nginx, it treats an
// invalid number as no delay.
func parseWait(text string) time.Duration {
	if text == "" || strings.Trim(text, "0123456789") != "" {
		return 0
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil || seconds > uint64(maxDelay/time.Second) {
		return maxDelay // only a number that is too long remains
	}
	return time.Duration(seconds) * time.Second
}

// parseAccepted parses the rest of a response with the status OK.
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

// parseServer returns the address of the user's backend. Its errors quote nothing of the
// response. It resolves no names, so that no resolver decides which server receives a password.
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

// parseOverride returns the name or password that replaces the client's, or "". The value has
// no escapes, as with nginx. Control characters are refused, because a backend might split the
// value at them.
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
