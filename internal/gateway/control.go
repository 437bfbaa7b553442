package gateway

import (
	"context"
	"errors"
	"time"

	"imapgate/internal/admin/api"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/proxy/relay"
)

// ShowConfig returns the configuration in force, without secrets.
func (g *Gateway) ShowConfig(context.Context, *api.None) (api.EffectiveConfig, error) {
	text, err := g.cfg.Effective()
	return api.EffectiveConfig{File: g.cfg.File(), Config: text}, err
}

// drainState is the progress of the drain of this gateway.
type drainState struct {
	began    time.Time
	forecast api.Forecast
}

// BeginDrain makes the gateway drain, or forecasts what that would do.
func (g *Gateway) BeginDrain(ctx context.Context, in *api.DrainRequest) (api.DrainStatus, error) {
	if in.DryRun {
		status := g.drainStatus()
		status.Forecast = forecastDrain(g.proxy.Registry().Sessions())
		return status, nil
	}
	g.drainOnce.Do(func() {
		g.recordAction(event.ActionDrain, api.CallerOf(ctx).Name, "", nil)
		close(g.drain)
	})
	return g.drainStatus(), nil
}

// forecastDrain returns what a drain of this gateway does to sessions: it ends all of them.
func forecastDrain(sessions []*relay.Session) api.Forecast {
	return api.Forecast{No: len(sessions), Obstacles: map[string]int{string(event.ObstacleGateway): len(sessions)}}
}

// ShowDrain returns the progress of the drain.
func (g *Gateway) ShowDrain(context.Context, *api.None) (api.DrainStatus, error) {
	return g.drainStatus(), nil
}

func (g *Gateway) drainStatus() api.DrainStatus {
	g.configMu.Lock()
	d := g.draining
	g.configMu.Unlock()
	status := api.DrainStatus{State: "none", Sessions: g.proxy.Registry().Len(), Forecast: api.Forecast{Obstacles: map[string]int{}}}
	if !d.began.IsZero() {
		status.State, status.Forecast = "draining", d.forecast
		status.Began, status.Deadline = api.Time{Time: d.began}, api.Time{Time: d.began.Add(g.cfg.Limits.DrainTimeout)}
	}
	return status
}

// noteDrain notes when the drain begins, and what it does.
func (g *Gateway) noteDrain() {
	forecast := forecastDrain(g.proxy.Registry().Sessions())
	g.configMu.Lock()
	defer g.configMu.Unlock()
	g.draining = drainState{time.Now(), forecast}
}

// noteReload notes the result of a reload for the status.
func (g *Gateway) noteReload(err error) {
	g.configMu.Lock()
	defer g.configMu.Unlock()
	g.config.lastReload = api.LastReload{At: api.Time{Time: time.Now()}}
	if err != nil {
		g.config.lastReload.Error = err.Error()
	}
}

// APIReload reloads the configuration, or checks it.
func (g *Gateway) APIReload(ctx context.Context, in *api.ReloadRequest) (api.ReloadAnswer, error) {
	answer := api.ReloadAnswer{Changed: []string{}, Problems: []api.Problem{}}
	var err error
	if in.DryRun {
		err = g.checkConfigUnchanged()
	} else {
		var changed []string
		changed, err = g.reload(api.CallerOf(ctx).Name)
		answer.Changed = append(answer.Changed, changed...)
	}
	answer.Accepted = err == nil
	answer.Problems = append(answer.Problems, describeProblems(g.cfg.File(), err)...)
	return answer, nil
}

// describeProblems returns the problems that an error has.
func describeProblems(file string, err error) (list []api.Problem) {
	for _, part := range config.SplitErrors(err) {
		var invalid *config.InvalidError
		if !errors.As(part, &invalid) {
			list = append(list, api.Problem{File: file, Text: part.Error()})
			continue
		}
		for _, p := range invalid.Problems {
			list = append(list, api.Problem{File: invalid.File, Line: p.Line, Column: p.Column, Key: p.Key, Text: p.Text})
		}
	}
	return list
}
