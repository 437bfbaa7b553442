package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin/api"
	"imapgate/internal/event"
	"imapgate/internal/fleet"
	"imapgate/internal/sanitize"
	"imapgate/proxy/relay"
	"imapgate/proxy/upstream"
)

const (
	// evacuationRate is how many sessions a second leave an address, so that the others are
	// not overrun.
	evacuationRate = 200
	// evacuationGrace is how long a session that cannot leave may go on.
	evacuationGrace = 30 * time.Second
)

// addressArgs is an order for an address.
type addressArgs struct {
	Backend string `json:"backend"`
	Address string `json:"address"`
	State   string `json:"state"` // of fleet.AddressState
	DryRun  bool   `json:"dry_run,omitempty"`
}

// addressAnswer is what an order does at one gateway.
type addressAnswer struct {
	Sessions int          `json:"sessions"`
	Forecast api.Forecast `json:"forecast"`
}

// addressOperation applies an order for an address at each gateway, which was recorded before.
func (g *Gateway) addressOperation() fleetOperation[addressArgs, addressAnswer] {
	return fleetOperation[addressArgs, addressAnswer]{"address", g.applyOrder}
}

func (g *Gateway) applyOrder(_ context.Context, args addressArgs, by string) (addressAnswer, error) {
	sessions := g.proxy.Registry().Select(relay.Query{Backend: args.Backend, Address: args.Address})
	answer := addressAnswer{len(sessions), g.forecastOrder(args, sessions)}
	if !args.DryRun {
		g.fleet.ApplyAddressState(fleet.AddressState{Backend: args.Backend, Address: args.Address, State: args.State, Since: time.Now(), By: by})
	}
	return answer, nil
}

// forecastOrder returns what an order does to the sessions of an address.
func (g *Gateway) forecastOrder(args addressArgs, sessions []*relay.Session) api.Forecast {
	f := newForecast()
	for _, s := range sessions {
		if args.State != string(event.AddressEvacuating) {
			f.Yes++
			continue
		}
		addToForecast(&f, forecastMove(s))
	}
	return f
}

// forecastMove returns what an evacuation means to a session: one that can leave its connection
// does so between two commands.
func forecastMove(s *relay.Session) relay.Status {
	status := s.Status()
	switch status.Obstacle {
	case event.ObstacleAppend, event.ObstacleWrite, event.ObstacleResponse: // it waits until that is done
		status.Survival, status.Obstacle = event.SurvivalYes, ""
	case "":
		status.Survival = event.SurvivalYes
	}
	if s.Info().Mode == event.ModeReuse {
		status.Survival, status.Obstacle = event.SurvivalNo, event.ObstacleReuse
	}
	return status
}

// orderAddress records an order for an address and makes all gateways follow it.
func (g *Gateway) orderAddress(ctx context.Context, in *api.AddressRequest, state event.AddressState) (api.AddressAnswer, error) {
	b := g.backends[in.Name]
	if b == nil {
		return api.AddressAnswer{}, fmt.Errorf("%w: there is no backend %s", api.ErrNotFound, sanitize.Quote(in.Name))
	}
	if !slices.ContainsFunc(b.Addresses(), func(a upstream.AddressStatus) bool { return a.Address == in.Address }) {
		return api.AddressAnswer{}, fmt.Errorf("%w: backend %s has no address %s", api.ErrNotFound, in.Name, sanitize.Quote(in.Address))
	}
	by := api.CallerOf(ctx).Name
	args := addressArgs{Backend: in.Name, Address: in.Address, State: string(state), DryRun: in.DryRun}
	if state == event.AddressUp {
		args.State = ""
	}
	if !in.DryRun {
		err := g.fleet.SetAddressState(ctx, fleet.AddressState{Backend: in.Name, Address: in.Address, State: args.State, Since: time.Now().UTC(), By: by})
		g.recordAction(event.ActionAddress, by, string(state)+" "+in.Name+" "+in.Address, err)
		if err != nil && !errors.Is(err, fleet.ErrNotSaved) {
			return api.AddressAnswer{}, err
		}
	}
	answers, gateways, err := g.addressOperation().ask(ctx, g, api.Scope{}, args)
	answer := api.AddressAnswer{Backend: in.Name, Address: in.Address, State: string(state), Forecast: newForecast(), Gateways: gateways}
	for _, a := range answers {
		answer.Sessions += a.answer.Sessions
		mergeForecast(&answer.Forecast, a.answer.Forecast)
	}
	return answer, err
}

// addressEndpoints are the operations that change the state of an address.
func (g *Gateway) addressEndpoints() []api.Endpoint {
	order := func(o api.Operation[api.AddressRequest, api.AddressAnswer], state event.AddressState) api.Endpoint {
		return o.Handle(func(ctx context.Context, in *api.AddressRequest) (api.AddressAnswer, error) {
			return g.orderAddress(ctx, in, state)
		})
	}
	return []api.Endpoint{
		order(api.DrainAddress, event.AddressDraining), order(api.ResumeAddress, event.AddressUp),
		order(api.DisableAddress, event.AddressDisabled), order(api.EvacuateAddress, event.AddressEvacuating),
	}
}

// evacuate begins to move the sessions of an address. It returns at once.
func (g *Gateway) evacuate(backend, address string) {
	g.evacuations.Go(func() { g.evacuateAddress(backend, address) })
}

// evacuateAddress runs as a goroutine, which ends when no session is left, the order is revoked,
// or the gateway ends. Sessions in mode resume move to another address at their next quiet
// moment; the others end, spread over the grace.
func (g *Gateway) evacuateAddress(backend, address string) {
	start := time.Now()
	ticker := time.NewTicker(time.Second / 10)
	defer ticker.Stop()
	asked := make(map[*relay.Session]bool)
	total := 0
	for {
		left := g.proxy.Registry().Select(relay.Query{Backend: backend, Address: address})
		if len(left) == 0 || !g.isEvacuating(backend, address) {
			g.log.Info("evacuation has ended", zap.String("backend", backend), zap.String("address", address), zap.Int("sessions_left", len(left)))
			return
		}
		fresh, stuck := splitAsked(left, asked)
		for _, s := range fresh[:min(len(fresh), evacuationRate/10)] {
			asked[s] = true
			if !s.Move() {
				total++
			}
		}
		endSpread(stuck, total, time.Since(start))
		select {
		case <-ticker.C:
		case <-g.stopping:
			return
		}
	}
}

// splitAsked returns the sessions that were not asked to leave yet, and those that cannot.
func splitAsked(sessions []*relay.Session, asked map[*relay.Session]bool) (fresh, stuck []*relay.Session) {
	for _, s := range sessions {
		switch {
		case !asked[s]:
			fresh = append(fresh, s)
		case !s.IsLeaving():
			stuck = append(stuck, s)
		}
	}
	return fresh, stuck
}

// endSpread ends so many of the sessions that cannot leave that all have ended after the grace.
func endSpread(stuck []*relay.Session, total int, elapsed time.Duration) {
	keep := 0
	if elapsed < evacuationGrace {
		keep = int(float64(total) * float64(evacuationGrace-elapsed) / float64(evacuationGrace))
	}
	for _, s := range stuck[:max(len(stuck)-keep, 0)] {
		s.End(event.Moved)
	}
}

// isEvacuating reports whether the order to evacuate an address stands.
func (g *Gateway) isEvacuating(backend, address string) bool {
	return slices.ContainsFunc(g.fleet.AddressStates(), func(s fleet.AddressState) bool {
		return s.Backend == backend && s.Address == address && s.State == string(event.AddressEvacuating)
	})
}
