package api

import "net/http"

// ShowUser shows all there is to know about a user. Constant.
var ShowUser = Operation[UserName, User]{
	Method: http.MethodGet, Path: "/api/v1/users/{user}", ID: "show-user", Summary: "A user's route, sessions and limits",
}

// UserName names a user.
type UserName struct {
	Scope
	User string `path:"user" maxLength:"512"`
}

// User is what the gateways know about a user.
type User struct {
	Name      string      `json:"name" doc:"The canonical name."`
	Route     RouteState  `json:"route"`
	Address   string      `json:"address,omitempty" doc:"Where the next login would go."`
	Why       string      `json:"address_why,omitempty" doc:"Why there."`
	Sessions  []Session   `json:"sessions" nullable:"false" doc:"At most 1000."`
	Limits    LimitStatus `json:"limits"`
	LastLogin Time        `json:"last_login" doc:"The latest one from a known network; null if there is none."`
	Gateways  Gateways    `json:"gateways"`
}

// RouteState is what routing decides for a user.
type RouteState struct {
	Backend string      `json:"backend,omitempty"`
	Login   string      `json:"login,omitempty"`
	Mode    string      `json:"mode,omitempty"`
	Source  string      `json:"source,omitempty" doc:"Which record has decided: the user's, the domain's or the default."`
	Key     string      `json:"key,omitempty"`
	From    string      `json:"from,omitempty" doc:"Where the record came from, such as the cache."`
	Age     float64     `json:"age" doc:"Seconds since the record was read."`
	Error   string      `json:"error,omitempty" doc:"Why there is no route."`
	Steps   []RouteStep `json:"steps" nullable:"false" doc:"The records, in order of precedence."`
}

// RouteStep is one record that routing considers.
type RouteStep struct {
	Key     string `json:"key"`
	Content string `json:"content" doc:"Its fields, or that there is none, or what is wrong."`
	Used    bool   `json:"used"`
}
