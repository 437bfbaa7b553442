package limit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/testbed"
)

// entered is a session of a user at a gate with budgets.
func entered(t testing.TB, g *Limiter, name string) *Conn {
	t.Helper()
	v := arrive(t, g, at("192.0.2.1"))
	if err := v.BeginSession(t.Context(), user(t, name)); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWithoutBoundsThereIsNoBudget(t *testing.T) {
	v := entered(t, newGate(t, wide(), nil), "alice")
	defer v.Close()
	if b := v.Quota(); b != nil {
		t.Errorf("a budget of nothing: %+v", b)
	}
}

func TestTheSessionsOfAUserShareABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := wide()
		cfg.UserQuota = Quotas{CommandsPerSecond: 10, BytesInPerSecond: 1000, BytesOutPerSecond: 2000}
		g := newGate(t, cfg, nil)
		one, other, bob := entered(t, g, "alice"), entered(t, g, "alice"), entered(t, g, "bob")
		for range 10 {
			if w := one.Quota().Command() + other.Quota().Command(); w != 0 {
				t.Fatalf("a wait of %v within two seconds' worth", w)
			}
		}
		if w := other.Quota().Command(); w != 100*time.Millisecond {
			t.Errorf("the command beyond waits %v", w)
		}
		if w := bob.Quota().Command(); w != 0 {
			t.Errorf("somebody else's command waits %v", w)
		}
		if w := one.Quota().Read(10_000); w != 8*time.Second {
			t.Errorf("10,000 bytes at 1,000 a second, 2,000 of them at once, take %v", w)
		}
		if w := other.Quota().Written(2000); w != 0 {
			t.Errorf("what is written waits %v for what was read", w)
		}
		time.Sleep(10 * time.Second)
		if w := other.Quota().Read(2000) + other.Quota().Command(); w != 0 {
			t.Errorf("after a rest there is a wait of %v", w)
		}
		for _, v := range []*Conn{one, other, bob} {
			v.Close()
		}
		if n := len(g.quotas.users); n != 0 {
			t.Errorf("%d budgets are left of nobody", n)
		}
	})
}

func TestADayHasRoomForSoManyBytesOfUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := wide()
		cfg.UserQuota = Quotas{AppendBytesPerDay: 1000}
		v := entered(t, newGate(t, cfg, nil), "alice")
		defer v.Close()
		for _, upload := range []struct {
			n    int64
			fits bool
		}{{600, true}, {500, false}, {1 << 62, false}, {400, true}, {1, false}} {
			if fits := v.Quota().Upload(t.Context(), upload.n); fits != upload.fits {
				t.Errorf("%d bytes more: %v", upload.n, fits)
			}
		}
		a, err := v.limiter.InspectUser(t.Context(), user(t, "alice"))
		if err != nil || a.Uploaded != 1000 || a.UploadLimit != 1000 {
			t.Errorf("an operator sees %d of %d bytes: %v", a.Uploaded, a.UploadLimit, err)
		}
		time.Sleep(24 * time.Hour)
		if a, err = v.limiter.InspectUser(t.Context(), user(t, "alice")); err != nil || a.Uploaded != 0 {
			t.Errorf("on the next day an operator sees %d bytes: %v", a.Uploaded, err)
		}
		if !v.Quota().Upload(t.Context(), 1000) {
			t.Error("the next day has no room")
		}
	})
}

func TestUploadsAreCountedAtAllGatewaysTogether(t *testing.T) {
	srv := testbed.StartRedis(t)
	cfg := wide()
	cfg.UserQuota = Quotas{AppendBytesPerDay: 1000}
	gate := func() *Limiter {
		client := redis.NewClient(&redis.Options{Addr: srv.Address})
		t.Cleanup(func() { _ = client.Close() })
		return newGate(t, cfg, client)
	}
	operator := gate()
	here, there := entered(t, gate(), "alice").Quota(), entered(t, gate(), "alice").Quota()
	if !here.Upload(t.Context(), 700) || there.Upload(t.Context(), 700) || !there.Upload(t.Context(), 300) || here.Upload(t.Context(), 1) {
		t.Error("two gateways do not count together")
	}
	a, err := operator.InspectUser(t.Context(), user(t, "alice"))
	if err != nil || a.Uploaded != 1000 || a.UploadLimit != 1000 {
		t.Errorf("an operator sees %d of %d bytes: %v", a.Uploaded, a.UploadLimit, err)
	}
	if a, err = operator.InspectUser(t.Context(), user(t, "bob")); err != nil || a.Uploaded != 0 {
		t.Errorf("of who uploaded nothing an operator sees %d bytes: %v", a.Uploaded, err)
	}
	srv.Kill()
	if there.Upload(t.Context(), 1) {
		t.Error("without Redis a gateway forgets what it knows")
	}
}
