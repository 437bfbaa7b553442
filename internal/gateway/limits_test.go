//go:build unix

package gateway

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin/legacy"
	"imapgate/internal/config"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestListenerLimitsReachTheLimiter(t *testing.T) {
	cfg := load(t, "limits: {preauth_timeout: 20s, user_quota: {commands_per_second: 50}, failures: {per_minute: 7, ban_duration: 1m}}")
	on := &cfg.Listeners[0]
	on.Limits = &limit.Settings{
		Connections: limit.Connections{PerUser: 3, PerAddress: -1},
		Failures:    limit.Failures{PerMinute: -1, MaxDelay: time.Minute, PerUserNetworkHour: 0, BanAfter: 4, Delay: -time.Second},
		UserQuota:   limit.Quotas{CommandsPerSecond: -1, AppendBytesPerDay: 1000},
	}
	made := limitConfig(cfg)
	got := made.Listeners[on.Name]
	if got.PerUser != 3 || got.PerAddress != made.PerAddress {
		t.Errorf("connections: %+v", got.Connections)
	}
	if f := got.Failures; f.PerMinute != 7 || f.MaxDelay != 5*time.Second || f.PerUserNetworkHour != 0 || f.BanAfter != 4 || f.Delay != 2*time.Second {
		t.Errorf("failures: %+v", f)
	}
	if got.UserQuota != (limit.Quotas{CommandsPerSecond: 50, AppendBytesPerDay: 1000}) {
		t.Errorf("quotas: %+v", got.UserQuota)
	}
	if made.Failures.BanAfter != 10 || made.UserQuota != (limit.Quotas{CommandsPerSecond: 50}) || made.Failures.BanDuration != time.Minute {
		t.Errorf("other listeners: %+v", made)
	}
}

func TestTooLongABanIsABadRequest(t *testing.T) {
	gate, err := limit.New(testbed.WithDefaults(limit.Config{}, testbed.NoLimit...), nil, limit.Hooks{}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	d := newLimitAdmin(&config.Config{}, gate)
	for _, length := range []time.Duration{0, -time.Hour, 11 * 365 * 24 * time.Hour} {
		if _, err := d.AddBan(t.Context(), legacy.BanRequest{Subject: "192.0.2.7", Duration: legacy.Duration(length)}); !errors.Is(err, legacy.ErrBadRequest) || !errors.Is(err, limit.ErrBanDuration) {
			t.Errorf("a ban for %v: %v", length, err)
		}
	}
}

// A busy Redis is no error of a command: no client waits for it.
func TestCommandsWaitForASlowRedis(t *testing.T) {
	redis := testbed.StartRedis(t)
	cfg := load(t, "")
	cfg.Redis.Addresses = []string{redis.Address}
	store, err := OpenStore(cfg)
	testkit.NoError(t, err)
	defer store.Close()
	redis.Freeze()
	time.AfterFunc(time.Second, redis.Thaw)
	if _, err := store.Limits.AddBan(t.Context(), legacy.BanRequest{Subject: "192.0.2.7", Duration: legacy.Duration(time.Hour)}); err != nil {
		t.Error(err)
	}
}
