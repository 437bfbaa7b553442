// Package client sends the operations of package api to a gateway, over its admin socket or
// its admin address.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"imapgate/internal/admin/api"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
)

const (
	// Timeout bounds a request. A gateway waits 2 s for the others of its fleet.
	Timeout = 10 * time.Second
	// maxResponse bounds a response, in bytes: a page of sessions has a thousand.
	maxResponse = 16 << 20
	// maxErrorText bounds the part of an error response that is shown.
	maxErrorText = 2000
)

// DefaultServer is the socket of the packaged service.
const DefaultServer = "unix:///run/imapgate/admin.sock"

// Options name a gateway.
type Options struct {
	Server string // unix:///path, http://host:port or https://host:port
	Token  identity.Secret
	CA     string // file with the CAs of an https server; "": the system's
}

// Client sends requests to one gateway. It is safe for concurrent use.
type Client struct {
	// Set once.
	server    string // for people
	address   string // of requests
	token     identity.Secret
	transport *http.Transport
}

// New returns a Client. It does not connect.
func New(o Options) (*Client, error) {
	u, err := url.Parse(o.Server)
	if err != nil {
		return nil, fmt.Errorf("server %s: not a URL", sanitize.Quote(o.Server))
	}
	// Not the default transport: a proxy of the environment must not see the token.
	c := &Client{server: o.Server, token: o.Token, transport: &http.Transport{MaxIdleConns: 1, IdleConnTimeout: time.Minute}}
	switch {
	case u.Scheme == "unix" && u.Path != "":
		c.address = "http://localhost"
		c.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", u.Path)
		}
	case u.Scheme == "https" && u.Host != "":
		c.address = "https://" + u.Host
		if c.transport.TLSClientConfig, err = tlsConfig(o.CA); err != nil {
			return nil, err
		}
	case u.Scheme == "http" && u.Host != "":
		if !o.Token.IsZero() && !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("server %s: a token must not travel in the clear; use https", o.Server)
		}
		c.address = "http://" + u.Host
	default:
		return nil, fmt.Errorf("server %s: expected unix:///path/to/admin.sock or https://host:port", sanitize.Quote(o.Server))
	}
	return c, nil
}

func tlsConfig(caFile string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return config, nil
	}
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate", caFile)
	}
	return config, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Server returns the URL of the gateway.
func (c *Client) Server() string { return c.server }

// Error is an answer of a gateway that refuses a request.
type Error struct {
	Status int
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Do executes an operation at the gateway.
func Do[Input, Output any](ctx context.Context, c *Client, o api.Operation[Input, Output], input *Input) (output Output, err error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	r, err := o.NewRequest(ctx, c.address, input)
	if err != nil {
		return output, err
	}
	response, err := c.send(r)
	if err != nil {
		return output, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, maxResponse)).Decode(&output); err != nil {
		return output, fmt.Errorf("%s did not answer like a gateway: %w", c.server, err)
	}
	return output, nil
}

// Get requests a path that is not an operation, such as an endless one. The caller closes the
// body.
func (c *Client) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.address+path+"?"+query.Encode(), nil)
	if err != nil {
		return nil, err
	}
	response, err := c.send(r)
	if err != nil {
		return nil, err
	}
	return response.Body, nil
}

// send sends a request, and turns refusals into errors.
func (c *Client) send(r *http.Request) (*http.Response, error) {
	if !c.token.IsZero() {
		r.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	response, err := c.transport.RoundTrip(r)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("%s: no gateway is running there: %w", c.server, err)
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s: %w: only root and the socket's group may use it", c.server, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", c.server, err)
	case response.StatusCode/100 == 2:
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, maxErrorText)) // a partial text is enough
	return nil, &Error{response.StatusCode, describeError(response, text)}
}

// describeError returns what a gateway gives as the reason of a refusal.
func describeError(response *http.Response, text []byte) string {
	var problem struct {
		Detail string `json:"detail"`
		Errors []struct {
			Message  string `json:"message"`
			Location string `json:"location"`
		} `json:"errors"`
	}
	reason := strings.TrimSpace(string(text))
	if json.Unmarshal(text, &problem) == nil && problem.Detail != "" {
		reason = problem.Detail
		for _, e := range problem.Errors {
			reason += "; " + strings.TrimPrefix(e.Location, "query.") + ": " + e.Message
		}
	}
	reason = sanitize.Line(reason, maxErrorText)
	switch response.StatusCode {
	case http.StatusUnauthorized:
		return "the gateway needs a token, or does not know this one: --token-file FILE, or IMAPGATE_TOKEN"
	case http.StatusTooManyRequests:
		return "too many wrong tokens were sent from here; wait a minute"
	}
	return reason
}
