package api

import "net/http"

// Scope is which gateways a request is for.
type Scope struct {
	Scope string `query:"scope" enum:"fleet,gateway" default:"fleet" doc:"fleet: all gateways. gateway: the one that is asked."`
}

// IsFleet reports whether all gateways are asked.
func (s Scope) IsFleet() bool { return s.Scope != "gateway" }

// Gateways is which gateways have answered a request. What the missing ones would have
// answered is not in the response.
type Gateways struct {
	Asked    int      `json:"asked"`
	Answered int      `json:"answered"`
	Missing  []string `json:"missing" nullable:"false" doc:"Names of the gateways that have not answered in time."`
	Refused  []string `json:"refused,omitempty" doc:"Gateways that have answered with an error, and the error."`
}

// IsPartial reports whether some gateway has not done what was asked.
func (g Gateways) IsPartial() bool { return g.Answered < g.Asked || len(g.Refused) > 0 }

// ListGateways lists the fleet.
var ListGateways = Operation[None, GatewayList]{
	Method: http.MethodGet, Path: "/api/v1/gateways", ID: "list-gateways", Summary: "The gateways of the fleet",
}

// GatewayList has the gateways that have sent a heartbeat lately.
type GatewayList struct {
	Gateways []Gateway `json:"gateways" nullable:"false"`
	Error    string    `json:"error,omitempty" doc:"Why there may be others: Redis is down."`
}

// Gateway is one gateway of the fleet.
type Gateway struct {
	ID              string  `json:"id"`
	Name            string  `json:"name"`
	Version         string  `json:"version"`
	State           string  `json:"state" enum:"starting,serving,draining"`
	API             string  `json:"api,omitempty" doc:"The address of its API."`
	Sessions        int     `json:"sessions"`
	LoginsPerSecond float64 `json:"logins_per_second"`
	Started         Time    `json:"started"`
	Heartbeat       Time    `json:"heartbeat" doc:"When it was last heard of."`
}
