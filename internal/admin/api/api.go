// Package api has the operations of the admin address: for each its address, its request
// and its response. The server and the commands that query it share them.
package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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
