// Package api has the requests that operators send to the admin address of a gateway, and
// the responses.
package api

import (
	"time"

	"imapgate/proxy"
)

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
