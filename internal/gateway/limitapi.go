package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/event"
)

// limitEndpoints are the operations on limits and bans. All gateways share both, so one is
// enough to ask.
func (g *Gateway) limitEndpoints() []api.Endpoint {
	limits := newLimitAdmin(g.cfg, g.limits)
	return []api.Endpoint{
		api.ListBans.Handle(func(ctx context.Context, _ *api.None) (api.BanList, error) {
			bans, err := limits.ListBans(ctx, legacy.None{})
			list := api.BanList{Bans: make([]api.Ban, 0, len(bans))}
			for _, b := range bans {
				list.Bans = append(list.Bans, newAPIBan(b))
			}
			return list, err
		}),
		api.AddBan.Handle(func(ctx context.Context, in *api.BanRequest) (api.Ban, error) {
			b := in.Body
			ban, err := limits.AddBan(ctx, legacy.BanRequest{Subject: b.Subject, Duration: legacy.Duration(b.Seconds * float64(time.Second)), Note: b.Note})
			g.recordAction(event.ActionBan, api.CallerOf(ctx).Name, b.Subject, err)
			return newAPIBan(ban), fromLegacy(err)
		}),
		api.RemoveBans.Handle(func(ctx context.Context, in *api.BanSubject) (api.RemovedBans, error) {
			removed, err := limits.RemoveBans(ctx, in.Subject)
			g.recordAction(event.ActionUnban, api.CallerOf(ctx).Name, in.Subject, err)
			return api.RemovedBans(removed), fromLegacy(err)
		}),
		api.ShowLimits.Handle(func(ctx context.Context, in *api.LimitSubject) (api.LimitStatus, error) {
			return g.limitsOf(ctx, in.Subject)
		}),
		api.ResetLimits.Handle(func(ctx context.Context, in *api.LimitSubject) (api.LimitsReset, error) {
			reset, err := limits.ResetLimits(ctx, in.Subject)
			g.recordAction(event.ActionLimitsReset, api.CallerOf(ctx).Name, in.Subject, err)
			return api.LimitsReset(reset), fromLegacy(err)
		}),
	}
}

// fromLegacy returns an error of LimitAdmin as one of package api.
func fromLegacy(err error) error {
	if errors.Is(err, legacy.ErrBadRequest) {
		return fmt.Errorf("%w: %w", api.ErrBadRequest, err)
	}
	return err
}

// limitsOf returns the status of a user or an address.
func (g *Gateway) limitsOf(ctx context.Context, subject string) (api.LimitStatus, error) {
	s, err := newLimitAdmin(g.cfg, g.limits).ShowLimits(ctx, subject)
	out := api.LimitStatus{
		Subject: s.Subject, Exempt: s.Exempt, Sessions: s.Sessions, Delay: s.Delay.Seconds(), Failures: make([]api.FailureCount, 0, len(s.Failures)),
		KnownNetworksOnly: s.KnownNetworksOnly,
	}
	if s.Ban != nil {
		ban := newAPIBan(*s.Ban)
		out.Ban = &ban
	}
	for _, f := range s.Failures {
		out.Failures = append(out.Failures, api.FailureCount(f))
	}
	for _, k := range s.KnownNetworks {
		out.KnownNetworks = append(out.KnownNetworks, api.KnownNetwork{Network: k.Network, Last: api.Time{Time: k.Last}, Failures: k.Failures})
	}
	if s.Uploads != nil {
		uploads := api.UploadCount(*s.Uploads)
		out.Uploads = &uploads
	}
	return out, fromLegacy(err)
}

func newAPIBan(b legacy.Ban) api.Ban {
	return api.Ban{Network: b.Network, Reason: b.Reason, Until: api.Time{Time: b.Until}, Count: b.Count, Note: b.Note, Exempt: b.Exempt}
}
