package api

import (
	"encoding/json"
	"net/http"
)

// Operations on a gateway. Constant.
var (
	ShowStatus = Operation[None, Status]{
		Method: http.MethodGet, Path: "/api/v1/status", ID: "show-status", Summary: "The state of this gateway",
	}
	ShowConfig = Operation[None, EffectiveConfig]{
		Method: http.MethodGet, Path: "/api/v1/config", ID: "show-config", Summary: "The configuration in force, with secrets masked",
	}
	Reload = Operation[ReloadRequest, ReloadAnswer]{
		Method: http.MethodPost, Path: "/api/v1/reload", ID: "reload", Summary: "Read the configuration and all files again",
	}
	BeginDrain = Operation[DrainRequest, DrainStatus]{
		Method: http.MethodPost, Path: "/api/v1/drain", ID: "begin-drain", Summary: "Stop this gateway: end its sessions over limits.drain_timeout",
	}
	ShowDrain = Operation[None, DrainStatus]{
		Method: http.MethodGet, Path: "/api/v1/drain", ID: "show-drain", Summary: "The progress of a drain",
	}
)

// Status is the state of one gateway.
type Status struct {
	Gateway      GatewayStatus   `json:"gateway"`
	Alerts       []Alert         `json:"alerts" nullable:"false" doc:"What an operator must see to; most urgent first."`
	Listeners    []Listener      `json:"listeners" nullable:"false"`
	Sessions     SessionCounts   `json:"sessions"`
	Backends     []BackendStatus `json:"backends" nullable:"false"`
	Redis        RedisStatus     `json:"redis"`
	Audit        []AuditSink     `json:"audit" nullable:"false"`
	Config       ConfigStatus    `json:"config"`
	Certificates []Certificate   `json:"certificates" nullable:"false"`
}

// GatewayStatus is what this gateway is.
type GatewayStatus struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Version string  `json:"version"`
	State   string  `json:"state" enum:"starting,serving,draining"`
	Started Time    `json:"started"`
	Uptime  float64 `json:"uptime" doc:"Seconds."`
	PID     int     `json:"pid"`
}

// Alert is one thing that needs an operator.
type Alert struct {
	Code string `json:"code"`
	Text string `json:"text" doc:"A sentence."`
}

// Listener is an address that clients connect to.
type Listener struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	TLS     string `json:"tls" enum:"implicit,starttls,none"`
}

// SessionCounts are the live sessions of a gateway.
type SessionCounts struct {
	Total           int            `json:"total"`
	ByMode          map[string]int `json:"by_mode" nullable:"false"`
	ByState         map[string]int `json:"by_state" nullable:"false"`
	LoginsPerSecond float64        `json:"logins_per_second" doc:"Over the last minute."`
}

// BackendStatus is a backend in the status of a gateway.
type BackendStatus struct {
	Name      string         `json:"name"`
	Sessions  int            `json:"sessions"`
	Addresses map[string]int `json:"addresses" nullable:"false" doc:"How many addresses are in each state."`
}

// RedisStatus is how this gateway sees Redis.
type RedisStatus struct {
	Configured bool   `json:"configured"`
	Connected  bool   `json:"connected" doc:"It has answered the latest request."`
	Error      string `json:"error,omitempty"`
}

// AuditSink is where audit records go.
type AuditSink struct {
	Name  string `json:"name"`
	State string `json:"state" enum:"ok,failing"`
	Lost  uint64 `json:"lost" doc:"Records that were lost."`
}

// ConfigStatus is which configuration is in force.
type ConfigStatus struct {
	File       string     `json:"file"`
	Hash       string     `json:"hash" doc:"SHA-256 of the file."`
	LoadedAt   Time       `json:"loaded_at"`
	LastReload LastReload `json:"last_reload"`
}

// LastReload is the latest attempt to reload; its time is null if there was none.
type LastReload struct {
	At    Time   `json:"at"`
	Error string `json:"error,omitempty" doc:"Why the new file is not in force."`
}

// Certificate is a certificate that the gateway serves or presents.
type Certificate struct {
	File     string `json:"file"`
	NotAfter Time   `json:"not_after"`
}

// EffectiveConfig is the configuration in force: defaults and overrides applied.
type EffectiveConfig struct {
	File   string          `json:"file"`
	Config json.RawMessage `json:"config" doc:"As the file, in JSON."`
}

// ReloadRequest asks for a reload.
type ReloadRequest struct {
	DryRun bool `query:"dry_run" doc:"Only check the file, and list what would change."`
}

// ReloadAnswer is the result of a reload.
type ReloadAnswer struct {
	Accepted bool      `json:"accepted" doc:"The file is in force; with dry_run, would be."`
	Changed  []string  `json:"changed" nullable:"false" doc:"Keys whose values have changed, and files that were read again."`
	Problems []Problem `json:"problems" nullable:"false" doc:"Why it was refused, as imapgate check reports it."`
}

// Problem is one problem of a configuration.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Key    string `json:"key,omitempty"`
	Text   string `json:"text"`
}

// DrainRequest begins a drain.
type DrainRequest struct {
	DryRun bool `query:"dry_run" doc:"Only forecast what it would do to the sessions."`
}

// DrainStatus is the progress of a drain of this gateway.
type DrainStatus struct {
	State    string   `json:"state" enum:"none,draining"`
	Sessions int      `json:"sessions" doc:"Live sessions that are left."`
	Began    Time     `json:"began"`
	Deadline Time     `json:"deadline" doc:"When the last sessions are ended."`
	Forecast Forecast `json:"forecast"`
}

// Forecast is what would happen to sessions, by what the client would notice.
type Forecast struct {
	Yes       int            `json:"yes" doc:"Sessions whose clients notice nothing."`
	Pause     int            `json:"pause" doc:"Sessions whose command in progress waits."`
	No        int            `json:"no" doc:"Sessions that end."`
	Obstacles map[string]int `json:"obstacles" nullable:"false" doc:"Why sessions end."`
}
