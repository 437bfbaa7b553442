package gateway

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"imapgate/internal/admin/api"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/fleet"
)

// fleetOperation is what every gateway of the fleet does when one of them is asked.
type fleetOperation[Args, Answer any] struct {
	name string // in the commands of the fleet
	run  func(ctx context.Context, args Args, by string) (Answer, error)
}

// register returns the operation for package fleet.
func (o fleetOperation[Args, Answer]) register() fleet.Operation { return fleet.Operate(o.name, o.run) }

// gatewayAnswer is the answer of one gateway.
type gatewayAnswer[Answer any] struct {
	gateway string // its name
	answer  Answer
}

// ask runs an operation at the gateways that scope names, and returns the answers. Its error is
// that of this gateway.
func (o fleetOperation[Args, Answer]) ask(ctx context.Context, g *Gateway, scope api.Scope, args Args) ([]gatewayAnswer[Answer], api.Gateways, error) {
	send := g.fleet.AskSelf
	if scope.IsFleet() {
		send = g.fleet.Ask
	}
	reply, err := send(ctx, o.name, args, cmp.Or(api.CallerOf(ctx).Name, "viewer"))
	if err != nil {
		return nil, api.Gateways{}, err
	}
	if own := reply.Answers[0]; own.Code != "" {
		return nil, api.Gateways{}, errors.New(own.Error)
	}
	gateways := api.Gateways{Asked: reply.Asked, Answered: len(reply.Answers), Missing: append([]string{}, reply.Missing...), Refused: reply.Refused()}
	var answers []gatewayAnswer[Answer]
	for _, a := range reply.Answers {
		if a.Code != "" {
			continue
		}
		var answer Answer
		if err := json.Unmarshal(a.Result, &answer); err != nil {
			gateways.Refused = append(gateways.Refused, fmt.Sprintf("gateway %s, version %s, has answered in an unknown form", a.Name, a.Version))
			continue
		}
		answers = append(answers, gatewayAnswer[Answer]{a.Name, answer})
	}
	return answers, gateways, nil
}

// openFleet runs after openRoutes, which creates the Redis client.
func (g *Gateway) openFleet() {
	options := fleet.Options{
		ID: g.instance, Name: cmp.Or(g.cfg.Gateway.Name, g.hostName, g.instance), Version: g.version, StateFile: g.cfg.Gateway.StateFile,
		Describe: g.describeLoad, OnAddressState: g.applyAddressState, Log: g.log,
		Operations: []fleet.Operation{
			g.sessionsOperation().register(), g.kickOperation().register(), g.backendsOperation().register(), g.addressOperation().register(),
		},
	}
	if g.cfg.Redis != nil {
		options.Prefix = g.cfg.Redis.Prefix
	}
	g.fleet = fleet.New(g.redis, options)
}

// describeLoad returns what the heartbeat of this gateway says.
func (g *Gateway) describeLoad() fleet.Load {
	r := g.proxy.Registry()
	load := fleet.Load{State: g.state(), Sessions: r.Len(), LoginsPerSecond: r.LoginsPerSecond()}
	if g.admin != nil && g.admin.Addr() != nil {
		load.API = g.admin.Addr().String()
	}
	return load
}

// applyAddressState makes a backend follow what an operator has decided about an address.
func (g *Gateway) applyAddressState(s fleet.AddressState) {
	b := g.backends[s.Backend]
	if b == nil {
		return // another gateway has it, or had it
	}
	state := cmp.Or(event.AddressState(s.State), event.AddressUp)
	if !b.SetState(s.Address, state) {
		g.log.Warn("an operator's order is about an address that the backend does not have", zap.String("backend", s.Backend),
			zap.String("address", s.Address), zap.String("state", string(state)))
	}
	if state == event.AddressEvacuating {
		g.evacuate(s.Backend, s.Address)
	}
}

// recordAddressState returns the hook that records the states of a backend's addresses.
func (g *Gateway) recordAddressState(backend string) func(address string, old, now event.AddressState, why string) {
	return func(address string, old, now event.AddressState, why string) {
		level := zap.InfoLevel
		if now == event.AddressDown {
			level = zap.WarnLevel
		}
		g.log.Log(level, "backend address is "+string(now), zap.String("backend", backend), zap.String("address", address), zap.String("was", string(old)), zap.String("why", why))
		record := audit.AddressState{Backend: backend, Address: address, State: now, Old: old, Why: why}
		g.logLostRecord(event.AddressChanged, g.audit.AddressState(&record))
	}
}

// ListGateways returns the fleet.
func (g *Gateway) ListGateways(ctx context.Context, _ *api.None) (api.GatewayList, error) {
	all, err := g.fleet.List(ctx)
	list := api.GatewayList{Gateways: make([]api.Gateway, 0, len(all))}
	if err != nil {
		list.Error = "there may be other gateways: " + err.Error()
	}
	for _, one := range all {
		list.Gateways = append(list.Gateways, api.Gateway{
			ID: one.ID, Name: one.Name, Version: one.Version, State: one.State, API: one.API, Sessions: one.Sessions,
			LoginsPerSecond: one.LoginsPerSecond, Started: api.Time{Time: one.Started}, Heartbeat: api.Time{Time: one.Heartbeat},
		})
	}
	return list, nil
}
