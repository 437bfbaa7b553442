package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"imapgate/internal/admin"
)

const (
	// adminTimeout bounds a request to a running gateway, which may query Redis itself.
	adminTimeout = 3 * time.Second
	// maxResponse bounds its response: some thousand bans.
	maxResponse = 4 << 20
	// maxErrorText bounds the part of an error response that is shown.
	maxErrorText = 300
)

var errNoAdmin = errors.New("the configuration has no admin address")

// adminRequest is one request to the admin address of a running gateway.
type adminRequest struct {
	method string
	path   string
	query  url.Values
	body   any // nil: none
}

// do sends the request and stores the decoded response in into.
func (a adminRequest) do(ctx context.Context, admin admin.Settings, into any) error {
	if admin.Address == "" {
		return errNoAdmin
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	r, err := a.newHTTPRequest(ctx, admin)
	if err != nil {
		return err
	}
	// Not the default transport: a proxy of the environment must not see the token.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", r.URL.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		message, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // a partial text is enough
		return fmt.Errorf("%s returned %s: %s", r.URL.Host, resp.Status, quoteUnsafe(strings.TrimSpace(string(message))))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxResponse)).Decode(into); err != nil {
		return fmt.Errorf("%s did not respond like a gateway: %w", r.URL.Host, err)
	}
	return nil
}

func (a adminRequest) newHTTPRequest(ctx context.Context, admin admin.Settings) (*http.Request, error) {
	var body io.Reader = http.NoBody
	if a.body != nil {
		text, err := json.Marshal(a.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	target := url.URL{Scheme: "http", Host: dialableAddress(admin.Address), Path: a.path, RawQuery: a.query.Encode()}
	r, err := http.NewRequestWithContext(ctx, a.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	if a.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if !admin.Token.IsZero() {
		r.Header.Set("Authorization", "Bearer "+admin.Token.Reveal())
	}
	return r, nil
}

// dialableAddress returns an address to connect to for a listening address that may
// be a wildcard.
func dialableAddress(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "127.0.0.1"
		if err == nil && a.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}
