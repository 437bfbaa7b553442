//go:build unix

package main

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin"
	"imapgate/internal/config"
	"imapgate/internal/limit"
)

func TestListenerLimitsReachTheLimiter(t *testing.T) {
	file, _ := gatewayConfig(t, `
auth: {default_domain: example.org}
routing: {source: static, static: {default: east}}
limits: {preauth_timeout: 20s, user_quota: {commands_per_second: 50}, failures: {per_minute: 7, ban_duration: 1m}}
`)
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	on := &cfg.Listeners[0]
	on.Limits = &config.ListenerLimits{
		Connections: config.ListenerConnections{PerUser: 3, PerAddress: -1},
		Failures:    config.ListenerFailures{PerMinute: -1, MaxDelay: time.Minute, PerUserNetworkHour: 0, BanAfter: 4, Delay: -time.Second},
		UserQuota:   config.ListenerQuota{CommandsPerSecond: -1, AppendBytesPerDay: 1000},
	}
	made := limitConfig(cfg)
	got := made.Listeners[on.Name]
	if got.Connections.PerUser != 3 || got.Connections.PerAddress != made.Connections.PerAddress {
		t.Errorf("connections: %+v", got.Connections)
	}
	if f := got.Failures; f.PerMinute != 7 || f.MaxDelay != 5*time.Second || f.PerUserNetworkHour != 0 || f.BanAfter != 4 || f.Delay != 2*time.Second {
		t.Errorf("failures: %+v", f)
	}
	if got.UserQuota != (limit.UserQuota{CommandsPerSecond: 50, AppendBytesPerDay: 1000}) {
		t.Errorf("quotas: %+v", got.UserQuota)
	}
	if made.Failures.BanAfter != 10 || made.UserQuota != (limit.UserQuota{CommandsPerSecond: 50}) || made.Failures.BanDuration != time.Minute {
		t.Errorf("other listeners: %+v", made)
	}
}

func TestTooLongABanIsABadRequest(t *testing.T) {
	gate, err := limit.New(limit.Config{}, nil, limit.Hooks{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	d := newLocalAdmin(&config.Config{}, gate)
	for _, length := range []time.Duration{0, -time.Hour, 11 * 365 * 24 * time.Hour} {
		if _, err := d.addBan(t.Context(), admin.BanRequest{Subject: "192.0.2.7", Duration: length}); !errors.Is(err, admin.ErrBadRequest) || !errors.Is(err, limit.ErrBanDuration) {
			t.Errorf("a ban for %v: %v", length, err)
		}
	}
}
