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

	"imapgate/internal/config"
)

const (
	// adminTimeout bounds a question to a running gateway, which asks Redis itself.
	adminTimeout = 3 * time.Second
	// maxResponse bounds its answer: some thousand bans.
	maxResponse = 4 << 20
	// maxErrorText bounds what is shown of an answer that is none.
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

// do puts the question, and the answer into what is to hold it.
func (q adminRequest) do(ctx context.Context, admin config.Admin, into any) error {
	if admin.Address == "" {
		return errNoAdmin
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	r, err := q.newHTTPRequest(ctx, admin)
	if err != nil {
		return err
	}
	// Not the default transport: the token is not for a proxy of the environment.
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("ask %s: %w", r.URL.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		message, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // what there is of it
		return fmt.Errorf("%s answers %s: %s", r.URL.Host, resp.Status, quoteUnsafe(strings.TrimSpace(string(message))))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxResponse)).Decode(into); err != nil {
		return fmt.Errorf("%s does not answer as a gateway: %w", r.URL.Host, err)
	}
	return nil
}

func (q adminRequest) newHTTPRequest(ctx context.Context, admin config.Admin) (*http.Request, error) {
	var body io.Reader = http.NoBody
	if q.body != nil {
		text, err := json.Marshal(q.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	target := url.URL{Scheme: "http", Host: dialableAddress(admin.Address), Path: q.path, RawQuery: q.query.Encode()}
	r, err := http.NewRequestWithContext(ctx, q.method, target.String(), body)
	if err != nil {
		return nil, err
	}
	if q.body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if !admin.Token.IsZero() {
		r.Header.Set("Authorization", "Bearer "+admin.Token.Reveal())
	}
	return r, nil
}

// dialableAddress is where to connect for an address that may be all of a machine's.
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
