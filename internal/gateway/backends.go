package gateway

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"imapgate/internal/admin/api"
	"imapgate/internal/event"
	"imapgate/internal/sanitize"
	"imapgate/proxy/relay"
)

// backendsArgs asks a gateway for its view of the backends.
type backendsArgs struct {
	Name string `json:"name,omitempty"` // only this one
}

// backendsOperation describes the backends of each gateway.
func (g *Gateway) backendsOperation() fleetOperation[backendsArgs, []api.Backend] {
	return fleetOperation[backendsArgs, []api.Backend]{"backends", g.listOwnBackends}
}

func (g *Gateway) listOwnBackends(_ context.Context, args backendsArgs, _ string) ([]api.Backend, error) {
	list := []api.Backend{}
	for _, state := range g.proxy.Backends() {
		if args.Name != "" && state.Name != args.Name {
			continue
		}
		b := api.Backend{
			Name: state.Name, Mode: string(state.Mode), Sessions: make(map[string]int), Spliced: state.Spliced, SplicedUntil: api.Time{Time: state.SplicedUntil},
			SplicedUsers: state.SplicedUsers, AffectedUsers: state.AffectedUsers, Addresses: []api.Address{},
			IfLost: newForecast(),
		}
		perAddress := make(map[string]int)
		for _, live := range g.proxy.Registry().Select(relay.Query{Backend: state.Name}) {
			info := live.Info()
			b.Sessions[string(info.Mode)]++
			perAddress[info.Address]++
			addToForecast(&b.IfLost, live.Status())
		}
		up := g.backends[state.Name]
		b.Maintenance = up.Maintenance()
		for _, a := range up.Addresses() {
			b.Addresses = append(b.Addresses, api.Address{
				Address: a.Address, State: string(a.State), Why: a.Why, Since: api.Time{Time: a.Since}, Priority: a.Priority, Weight: a.Weight,
				Sessions: perAddress[a.Address], Connections: a.Connections, LoginsPerSecond: a.LoginsPerSecond, Logins: a.Logins, Failures: a.Failures,
				Latency: a.Latency.Seconds(), CheckLatency: a.CheckLatency.Seconds(),
			})
			b.LoginsPerSecond += a.LoginsPerSecond
		}
		list = append(list, b)
	}
	return list, nil
}

func newForecast() api.Forecast { return api.Forecast{Obstacles: make(map[string]int)} }

// addToForecast adds what a loss would mean to a session.
func addToForecast(f *api.Forecast, s relay.Status) {
	switch s.Survival {
	case event.SurvivalYes:
		f.Yes++
	case event.SurvivalPause:
		f.Pause++
	default:
		f.No++
		f.Obstacles[string(s.Obstacle)]++
	}
}

// mergeForecast adds another gateway's forecast.
func mergeForecast(f *api.Forecast, other api.Forecast) {
	f.Yes, f.Pause, f.No = f.Yes+other.Yes, f.Pause+other.Pause, f.No+other.No
	for obstacle, n := range other.Obstacles {
		f.Obstacles[obstacle] += n
	}
}

// ListBackends returns all backends as the gateways see them together.
func (g *Gateway) ListBackends(ctx context.Context, in *api.Scope) (api.BackendList, error) {
	answers, gateways, err := g.backendsOperation().ask(ctx, g, *in, backendsArgs{})
	return api.BackendList{Backends: mergeBackends(answers), Gateways: gateways}, err
}

// GetBackend returns one backend.
func (g *Gateway) GetBackend(ctx context.Context, in *api.BackendName) (api.BackendAnswer, error) {
	answers, gateways, err := g.backendsOperation().ask(ctx, g, in.Scope, backendsArgs{Name: in.Name})
	if err != nil {
		return api.BackendAnswer{}, err
	}
	all := mergeBackends(answers)
	if len(all) == 0 {
		return api.BackendAnswer{}, fmt.Errorf("%w: %s", api.ErrNotFound, describeMissing("backend "+sanitize.Quote(in.Name), gateways))
	}
	return api.BackendAnswer{Backend: all[0], Gateways: gateways}, nil
}

// mergeBackends adds up the views of the gateways, by the name of the backend.
func mergeBackends(answers []gatewayAnswer[[]api.Backend]) []api.Backend {
	merged := make(map[string]*api.Backend)
	for _, a := range answers {
		for _, b := range a.answer {
			m := merged[b.Name]
			if m == nil {
				first := b
				first.Sessions, first.IfLost, first.Addresses, first.LoginsPerSecond = make(map[string]int), newForecast(), []api.Address{}, 0
				m, merged[b.Name] = &first, &first
			}
			for mode, n := range b.Sessions {
				m.Sessions[mode] += n
			}
			m.LoginsPerSecond += b.LoginsPerSecond
			m.Spliced = m.Spliced || b.Spliced
			if b.SplicedUntil.After(m.SplicedUntil.Time) {
				m.SplicedUntil = b.SplicedUntil
			}
			m.SplicedUsers, m.AffectedUsers = max(m.SplicedUsers, b.SplicedUsers), max(m.AffectedUsers, b.AffectedUsers)
			mergeForecast(&m.IfLost, b.IfLost)
			m.Addresses = mergeAddresses(m.Addresses, b.Addresses, a.gateway)
		}
	}
	list := []api.Backend{}
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		list = append(list, *merged[name])
	}
	return list
}

// badness orders the states of an address: the higher, the worse.
var badness = map[event.AddressState]int{ // constant
	event.AddressUp: 0, event.AddressDraining: 1, event.AddressEvacuating: 2, event.AddressDisabled: 3, event.AddressDown: 4,
}

// mergeAddresses adds one gateway's view of the addresses of a backend to that of others.
func mergeAddresses(all, added []api.Address, gateway string) []api.Address {
	for _, a := range added {
		i := slices.IndexFunc(all, func(known api.Address) bool { return known.Address == a.Address })
		if i < 0 {
			a.ByGateway = map[string]string{gateway: a.State}
			all = append(all, a)
			continue
		}
		m := &all[i]
		m.ByGateway[gateway] = a.State
		if badness[event.AddressState(a.State)] > badness[event.AddressState(m.State)] {
			m.State, m.Why, m.Since = a.State, a.Why, a.Since
		}
		// The mean latency is weighted by logins.
		if n := m.Logins + a.Logins; n > 0 {
			m.Latency = (m.Latency*float64(m.Logins) + a.Latency*float64(a.Logins)) / float64(n)
		}
		m.Sessions, m.Connections, m.LoginsPerSecond = m.Sessions+a.Sessions, m.Connections+a.Connections, m.LoginsPerSecond+a.LoginsPerSecond
		m.Logins, m.Failures, m.CheckLatency = m.Logins+a.Logins, m.Failures+a.Failures, max(m.CheckLatency, a.CheckLatency)
	}
	slices.SortFunc(all, func(a, b api.Address) int { return strings.Compare(a.Address, b.Address) })
	return all
}
