package api

import "net/http"

// Operations on sessions. Constant.
var (
	ListSessions = Operation[SessionFilter, SessionList]{
		Method: http.MethodGet, Path: "/api/v1/sessions", ID: "list-sessions", Summary: "Live sessions",
	}
	GetSession = Operation[SessionID, SessionAnswer]{
		Method: http.MethodGet, Path: "/api/v1/sessions/{id}", ID: "get-session", Summary: "One live session",
	}
	EndSession = Operation[EndSessionRequest, KickAnswer]{
		Method: http.MethodDelete, Path: "/api/v1/sessions/{id}", ID: "end-session", Summary: "End a session",
	}
	KickUser = Operation[KickRequest, KickAnswer]{
		Method: http.MethodPost, Path: "/api/v1/users/{user}/kick", ID: "kick-user", Summary: "End the sessions of a user",
	}
)

// SessionFilter selects sessions. All parameters that are given must match.
type SessionFilter struct {
	Scope
	Page
	SessionQuery
}

// SessionQuery is what is asked about sessions.
type SessionQuery struct {
	User      string  `query:"user" json:"user,omitempty" maxLength:"512" doc:"A user name; with * for any characters."`
	Domain    string  `query:"domain" json:"domain,omitempty" maxLength:"255" doc:"The domain of user names."`
	Backend   string  `query:"backend" json:"backend,omitempty" maxLength:"63"`
	Address   string  `query:"address" json:"address,omitempty" maxLength:"512" doc:"host:port of a backend."`
	Client    string  `query:"client" json:"client,omitempty" maxLength:"64" doc:"An IP address or network of clients."`
	Mode      string  `query:"mode" json:"mode,omitempty" enum:"splice,reuse,resume,park"`
	State     string  `query:"state" json:"state,omitempty" enum:"active,idle,waiting,pinned"`
	Gateway   string  `query:"gateway" json:"gateway,omitempty" maxLength:"255" doc:"The name or id of a gateway."`
	Survives  string  `query:"survives" json:"survives,omitempty" enum:"yes,pause,no"`
	IdleOver  float64 `query:"idle_over" json:"idle_over,omitempty" minimum:"0" doc:"Seconds without a byte."`
	OlderThan float64 `query:"older_than" json:"older_than,omitempty" minimum:"0" doc:"Seconds since the login."`
}

// SessionList is a page of sessions.
type SessionList struct {
	Sessions []Session `json:"sessions" nullable:"false"`
	Total    int       `json:"total" doc:"How many sessions match at the gateways that have answered."`
	Next     string    `json:"next,omitempty" doc:"The cursor of the next page; absent on the last."`
	Gateways Gateways  `json:"gateways"`
}

// Session is one client after its login.
type Session struct {
	ID            string `json:"id"`
	Gateway       string `json:"gateway" doc:"The name of its gateway."`
	User          string `json:"user"`
	Client        string `json:"client" doc:"IP address and port."`
	Listener      string `json:"listener"`
	TLS           string `json:"tls,omitempty" doc:"The version, such as TLS 1.3; absent without TLS."`
	Mechanism     string `json:"mechanism,omitempty"`
	ClientName    string `json:"client_name,omitempty" doc:"The name in the client's own ID command."`
	ClientVersion string `json:"client_version,omitempty"`
	Backend       string `json:"backend"`
	Address       string `json:"address,omitempty" doc:"host:port at the backend."`
	Login         string `json:"login,omitempty" doc:"The login name at the backend."`
	Mode          string `json:"mode"`
	State         string `json:"state" enum:"active,idle,waiting,pinned"`
	Mailbox       string `json:"mailbox,omitempty" doc:"The selected mailbox; unknown in mode splice."`
	Commands      uint64 `json:"commands" doc:"Unknown, and 0, in mode splice."`
	BytesIn       int64  `json:"bytes_in" doc:"From the client."`
	BytesOut      int64  `json:"bytes_out" doc:"To the client."`
	Began         Time   `json:"began"`
	LastActivity  Time   `json:"last_activity"`
	Survives      string `json:"survives" enum:"yes,pause,no" doc:"What the loss of its backend would mean."`
	Obstacle      string `json:"obstacle,omitempty" doc:"Why it would not survive."`
}

// SessionID names a session.
type SessionID struct {
	Scope
	ID string `path:"id" maxLength:"64"`
}

// SessionAnswer is a session, if one of the gateways that have answered has it.
type SessionAnswer struct {
	Session  Session  `json:"session"`
	Gateways Gateways `json:"gateways"`
}

// EndSessionRequest ends a session.
type EndSessionRequest struct {
	SessionID
	Reason string `query:"reason" maxLength:"200" doc:"What the client reads in its BYE, in the modes reuse and resume."`
}

// KickRequest ends the sessions of a user.
type KickRequest struct {
	Scope
	User string   `path:"user" maxLength:"512"`
	Body KickBody `json:"body"`
}

// KickBody is which of the user's sessions end, and how.
type KickBody struct {
	Backend      string  `json:"backend,omitempty" maxLength:"63" doc:"Only sessions there."`
	Client       string  `json:"client,omitempty" maxLength:"64" doc:"Only sessions from this IP address or network."`
	Reason       string  `json:"reason,omitempty" maxLength:"200" doc:"What the clients read in their BYE, in the modes reuse and resume."`
	BlockSeconds float64 `json:"block_seconds,omitempty" minimum:"0" maximum:"604800" doc:"For how long the user is refused afterwards."`
}

// KickAnswer is how many sessions have been told to end.
type KickAnswer struct {
	User     string         `json:"user,omitempty"`
	Sessions int            `json:"sessions"`
	By       map[string]int `json:"by_gateway" nullable:"false" doc:"Sessions by the name of the gateway."`
	Blocked  Time           `json:"blocked_until,omitempty"`
	Gateways Gateways       `json:"gateways"`
}
