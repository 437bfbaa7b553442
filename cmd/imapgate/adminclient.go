package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"imapgate/internal/admin"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/sanitize"
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

func query[Request, Response any](ctx context.Context, admin admin.Settings, o legacy.Operation[Request, Response], request Request) (response Response, err error) {
	if admin.Address == "" {
		return response, errNoAdmin
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	r, err := o.NewRequest(ctx, dialableAddress(admin.Address), request)
	if err != nil {
		return response, err
	}
	if !admin.Token.IsZero() {
		r.Header.Set("Authorization", "Bearer "+admin.Token.Reveal())
	}
	// Not the default transport: a proxy of the environment must not see the token.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return response, fmt.Errorf("admin address %s: %w: is the gateway running?", r.URL.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		message, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // a partial text is enough
		return response, fmt.Errorf("%s returned %s: %s", r.URL.Host, resp.Status, sanitize.Quote(strings.TrimSpace(string(message))))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxResponse)).Decode(&response); err != nil {
		return response, fmt.Errorf("%s did not respond like a gateway: %w", r.URL.Host, err)
	}
	return response, nil
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
