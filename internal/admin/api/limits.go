package api

import "net/http"

// Operations on limits and bans. Constant.
var (
	ListBans = Operation[None, BanList]{
		Method: http.MethodGet, Path: "/api/v1/bans", ID: "list-bans", Summary: "All bans",
	}
	AddBan = Operation[BanRequest, Ban]{
		Method: http.MethodPost, Path: "/api/v1/bans", ID: "add-ban", Summary: "Ban an address or a network, at all gateways",
	}
	RemoveBans = Operation[BanSubject, RemovedBans]{
		Method: http.MethodDelete, Path: "/api/v1/bans", ID: "remove-bans", Summary: "Remove the bans of an address or a network",
	}
	ShowLimits = Operation[LimitSubject, LimitStatus]{
		Method: http.MethodGet, Path: "/api/v1/limits", ID: "show-limits", Summary: "The status of a user or an address",
	}
	ResetLimits = Operation[LimitSubject, LimitsReset]{
		Method: http.MethodDelete, Path: "/api/v1/limits", ID: "reset-limits", Summary: "Forget the failed logins of a user",
	}
)

// BanList has all bans.
type BanList struct {
	Bans []Ban `json:"bans" nullable:"false"`
}

// BanSubject names what is banned.
type BanSubject struct {
	Subject string `query:"subject" required:"true" minLength:"1" maxLength:"64" doc:"An IP address or network."`
}

// BanRequest is a request for a ban.
type BanRequest struct {
	Body BanBody
}

// BanBody is the ban that is wanted.
type BanBody struct {
	Subject string  `json:"subject" minLength:"1" maxLength:"64" doc:"An IP address or network."`
	Seconds float64 `json:"seconds" exclusiveMinimum:"0" doc:"For how long."`
	Note    string  `json:"note,omitempty" maxLength:"200"`
}

// Ban is a banned network.
type Ban struct {
	Network string   `json:"network"`
	Reason  string   `json:"reason"`
	Until   Time     `json:"until"`
	Count   int      `json:"count" doc:"Ordinal of this ban of the network, from 1."`
	Note    string   `json:"note,omitempty"`
	Exempt  []string `json:"exempt,omitempty" doc:"Exempt networks in which a new ban has no effect."`
}

// RemovedBans is the result of removing bans.
type RemovedBans struct {
	Networks []string `json:"networks" nullable:"false"`
}

// LimitSubject names a user or an address.
type LimitSubject struct {
	Subject string `query:"subject" required:"true" minLength:"1" maxLength:"512" doc:"A user name or an IP address."`
}

// LimitStatus is the status of a user or an address.
type LimitStatus struct {
	Subject           string         `json:"subject"`
	Exempt            bool           `json:"exempt,omitempty"`
	Sessions          int            `json:"sessions"`
	Delay             float64        `json:"delay" doc:"Seconds that the next login is delayed; for a user, from an unknown network."`
	Ban               *Ban           `json:"ban,omitempty"`
	Failures          []FailureCount `json:"failures" nullable:"false"`
	KnownNetworksOnly bool           `json:"known_networks_only,omitempty" doc:"Because of the user's failures."`
	KnownNetworks     []KnownNetwork `json:"known_networks,omitempty"`
	Uploads           *UploadCount   `json:"uploads,omitempty" doc:"Of a user, if there is a bound."`
	BlockedUntil      Time           `json:"blocked_until" doc:"The user is refused until then, after a kick."`
}

// UploadCount is the upload quota of a user, in bytes of messages per UTC day.
type UploadCount struct {
	Today int64 `json:"today"`
	Limit int64 `json:"limit" doc:"0: no bound."`
}

// FailureCount is the number of failed logins in a window.
type FailureCount struct {
	Subject string `json:"subject"`
	Window  string `json:"window"`
	Count   int    `json:"count"`
	Limit   int    `json:"limit,omitempty" doc:"0: no bound."`
}

// KnownNetwork is a network from which a user has logged in recently.
type KnownNetwork struct {
	Network  string `json:"network"`
	Last     Time   `json:"last"`
	Failures int    `json:"failures_in_an_hour"`
}

// LimitsReset is the result of a reset.
type LimitsReset struct {
	User string `json:"user"`
}
