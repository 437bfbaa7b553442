// Package legacy has the operations under /v1 of the admin address, which package api replaces.
// They stay for one release. Each has its address, its request
// and its response. The server and the commands that query it share them.
package legacy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"imapgate/internal/duration"
	"imapgate/proxy"
	"imapgate/routing"
)

// ErrBadRequest is an operator's mistake: a request that no gateway can execute. Its
// text explains it.
var ErrBadRequest = errors.New("invalid request")

// The operations. Constant.
var (
	ExplainRoute = Operation[string, routing.Explanation]{http.MethodGet, "/v1/routes/explain", "user"}
	ListSessions = Operation[string, SessionList]{http.MethodGet, "/v1/sessions", "user"}
	ListBackends = Operation[None, BackendList]{http.MethodGet, "/v1/backends", ""}

	ShowLimits  = Operation[string, LimitStatus]{http.MethodGet, "/v1/limits", "who"} // of a user or an address
	ResetLimits = Operation[string, LimitsReset]{http.MethodDelete, "/v1/limits", "who"}
	ListBans    = Operation[None, []Ban]{http.MethodGet, "/v1/bans", ""}
	AddBan      = Operation[BanRequest, Ban]{http.MethodPost, "/v1/bans", ""}
	RemoveBans  = Operation[string, RemovedBans]{http.MethodDelete, "/v1/bans", "who"}
)

// BanRequest is an operator's request for a ban.
type BanRequest struct {
	Subject  string   `json:"who"` // an address or a network
	Duration Duration `json:"for"`
	Note     string   `json:"why"`
}

// String returns the subject.
func (b BanRequest) String() string { return b.Subject }

// Duration is in JSON a number of nanoseconds, or a text such as "10m" or "7d"; and the
// value of a flag.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(value []byte) error {
	var text string
	err := json.Unmarshal(value, &text)
	if err == nil {
		err = d.Set(text)
	} else {
		err = json.Unmarshal(value, (*time.Duration)(d))
	}
	if err != nil {
		return fmt.Errorf(`for: %s is not a duration: "10m", "72h", "7d", or a number of nanoseconds`, value)
	}
	return nil
}

// Set implements pflag.Value.
func (d *Duration) Set(text string) error {
	parsed, err := duration.Parse(text)
	*d = Duration(parsed)
	return err
}

// String implements pflag.Value.
func (d *Duration) String() string { return duration.Format(time.Duration(*d)) }

// Type implements pflag.Value.
func (d *Duration) Type() string { return "duration" }

// SessionList has the live sessions of a user at one gateway.
type SessionList struct {
	User     string               `json:"user"`
	Sessions []proxy.SessionCount `json:"sessions"`
}

// BackendList has the backends of a gateway.
type BackendList struct {
	Backends []proxy.BackendState `json:"backends"`
}

// Ban is the JSON form of a ban.
type Ban struct {
	Network string    `json:"network"`
	Reason  string    `json:"why"`
	Until   time.Time `json:"until"`
	Count   int       `json:"count"` // ordinal of this ban of the network, from 1
	Note    string    `json:"note,omitempty"`
	// Exempt has the exempt networks in which a ban that was just added has no effect.
	Exempt []string `json:"exempt,omitempty"`
}

// LimitStatus is the status of a user or an address.
type LimitStatus struct {
	Subject           string         `json:"subject"`
	Exempt            bool           `json:"exempt,omitempty"`
	Sessions          int            `json:"sessions"`
	Delay             time.Duration  `json:"delay_ns"` // of the next login; for a user, from an unknown network
	Ban               *Ban           `json:"ban,omitempty"`
	Failures          []FailureCount `json:"failures"`
	KnownNetworksOnly bool           `json:"known_networks_only,omitempty"` // because of the user's failures
	KnownNetworks     []KnownNetwork `json:"known_networks,omitempty"`
	Uploads           *UploadCount   `json:"uploads,omitempty"` // of a user, if there is a bound
}

// UploadCount is the upload quota of a user, in bytes of messages per UTC day.
type UploadCount struct {
	Today int64 `json:"today"`
	Limit int64 `json:"most"` // 0: no bound
}

// FailureCount is the number of failed logins in a window.
type FailureCount struct {
	Subject string `json:"of"`
	Window  string `json:"in"`
	Count   int    `json:"count"`
	Limit   int    `json:"most,omitempty"` // 0: no bound
}

// KnownNetwork is a network from which a user has logged in recently.
type KnownNetwork struct {
	Network  string    `json:"network"`
	Last     time.Time `json:"last"`
	Failures int       `json:"failures_in_an_hour"`
}

// RemovedBans is the result of removing bans.
type RemovedBans struct {
	Networks []string `json:"networks"`
}

// LimitsReset is the result of a reset.
type LimitsReset struct {
	User string `json:"user"`
}

// Operation is one request that operators send, and the types of what is sent and
// returned. A Request of type string is sent as a query parameter, None is not sent, and
// any other is the JSON body.
type Operation[Request, Response any] struct {
	Method, Path string
	Parameter    string // name of the query parameter
}

// None is the request of an operation that needs none.
type None struct{}

// Endpoint is the server's side of an operation.
type Endpoint struct {
	Method, Path string
	Serve        http.HandlerFunc
}

// Handle returns the endpoint at which call executes an operation. An error of call that
// is not ErrBadRequest means that the request may succeed later.
func Handle[Request, Response any](o Operation[Request, Response], call func(context.Context, Request) (Response, error)) Endpoint {
	return Endpoint{o.Method, o.Path, func(w http.ResponseWriter, r *http.Request) {
		var response Response
		request, err := o.decode(r)
		if err == nil {
			response, err = call(r.Context(), request)
		}
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			http.Error(w, "the body is too large", http.StatusRequestEntityTooLarge)
		case errors.Is(err, ErrBadRequest):
			http.Error(w, err.Error(), http.StatusBadRequest)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(response) // an error means that the client has disconnected
		}
	}}
}

// decode returns the request that the client has sent.
func (o Operation[Request, Response]) decode(r *http.Request) (request Request, err error) {
	switch into := any(&request).(type) {
	case *None:
	case *string:
		values := r.URL.Query()[o.Parameter]
		if len(values) != 1 || values[0] == "" {
			return request, fmt.Errorf("%w: %s needs one value: %s?%[2]s=", ErrBadRequest, o.Parameter, o.Path)
		}
		*into = values[0]
	default:
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			return request, fmt.Errorf("%w: the body: %w", ErrBadRequest, err)
		}
		if d.More() {
			return request, fmt.Errorf("%w: the body has more than one value", ErrBadRequest)
		}
	}
	return request, nil
}

// NewRequest returns the request to the admin address host.
func (o Operation[Request, Response]) NewRequest(ctx context.Context, host string, request Request) (*http.Request, error) {
	target := url.URL{Scheme: "http", Host: host, Path: o.Path}
	var body []byte
	switch value := any(request).(type) {
	case None:
	case string:
		target.RawQuery = url.Values{o.Parameter: {value}}.Encode()
	default:
		var err error
		if body, err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, o.Method, target.String(), bytes.NewReader(body))
	if err == nil && body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	return r, err
}
