package api

import "net/http"

// Operations on backends. Constant.
var (
	ListBackends = Operation[Scope, BackendList]{
		Method: http.MethodGet, Path: "/api/v1/backends", ID: "list-backends", Summary: "All backends and their addresses",
	}
	GetBackend = Operation[BackendName, BackendAnswer]{
		Method: http.MethodGet, Path: "/api/v1/backends/{name}", ID: "get-backend", Summary: "One backend",
	}
	DrainAddress    = addressOperation("drain", "Send no new users to an address")
	ResumeAddress   = addressOperation("resume", "Use an address as its health permits")
	DisableAddress  = addressOperation("disable", "Use an address for no login at all")
	EvacuateAddress = addressOperation("evacuate", "Move the sessions of an address to the others")
)

func addressOperation(verb, summary string) Operation[AddressRequest, AddressAnswer] {
	return Operation[AddressRequest, AddressAnswer]{
		Method: http.MethodPost, Path: "/api/v1/backends/{name}/addresses/{addr}/" + verb, ID: verb + "-address", Summary: summary,
	}
}

// BackendList has the backends as the gateways see them together.
type BackendList struct {
	Backends []Backend `json:"backends" nullable:"false"`
	Gateways Gateways  `json:"gateways"`
}

// BackendName names a backend.
type BackendName struct {
	Scope
	Name string `path:"name" maxLength:"63"`
}

// BackendAnswer is one backend.
type BackendAnswer struct {
	Backend  Backend  `json:"backend"`
	Gateways Gateways `json:"gateways"`
}

// Backend is a store of mailboxes. Its counts are those of all gateways that have answered.
type Backend struct {
	Name            string         `json:"name"`
	Mode            string         `json:"mode" doc:"Of sessions whose route names none."`
	Sessions        map[string]int `json:"sessions" nullable:"false" doc:"Live sessions by their mode."`
	LoginsPerSecond float64        `json:"logins_per_second"`
	Maintenance     string         `json:"maintenance,omitempty" doc:"What new logins are told."`
	Spliced         bool           `json:"spliced,omitempty" doc:"Its new sessions are spliced, because it has violated IMAP."`
	SplicedUntil    Time           `json:"spliced_until"`
	SplicedUsers    int            `json:"spliced_users,omitempty" doc:"Users whose new sessions are spliced for the same reason."`
	AffectedUsers   int            `json:"affected_users,omitempty" doc:"Users with violations in the last hour."`
	Addresses       []Address      `json:"addresses" nullable:"false"`
	IfLost          Forecast       `json:"if_lost" doc:"What the loss of the backend would mean to its sessions."`
}

// Address is one address of a backend.
type Address struct {
	Address         string            `json:"address"`
	State           string            `json:"state" enum:"up,down,draining,evacuating,disabled" doc:"The worst of the gateways that have answered."`
	ByGateway       map[string]string `json:"by_gateway,omitempty" doc:"The state at each gateway that has answered."`
	Why             string            `json:"why,omitempty"`
	Since           Time              `json:"since"`
	Priority        int               `json:"priority"`
	Weight          int               `json:"weight"`
	Sessions        int               `json:"sessions"`
	Connections     int               `json:"connections" doc:"Open connections, idle ones included."`
	LoginsPerSecond float64           `json:"logins_per_second"`
	Logins          uint64            `json:"logins" doc:"Since the start of the gateways."`
	Failures        uint64            `json:"failures"`
	Latency         float64           `json:"latency" doc:"Mean time of recent logins, in seconds."`
	CheckLatency    float64           `json:"check_latency,omitempty" doc:"Time of the last health check, in seconds."`
}

// AddressRequest changes the state of an address, at all gateways.
type AddressRequest struct {
	Name    string `path:"name" maxLength:"63"`
	Address string `path:"addr" maxLength:"512"`
	DryRun  bool   `query:"dry_run" doc:"Change nothing; only forecast."`
}

// AddressAnswer is the result of a change, or of a dry run.
type AddressAnswer struct {
	Backend  string   `json:"backend"`
	Address  string   `json:"address"`
	State    string   `json:"state"`
	Sessions int      `json:"sessions" doc:"Live sessions there."`
	Forecast Forecast `json:"forecast" doc:"What happens to them."`
	Gateways Gateways `json:"gateways"`
}
