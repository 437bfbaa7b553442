package limit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/testbed"
)

// newSession opens a connection and begins a session of a user on it.
func newSession(t testing.TB, l *Limiter, name string) *Conn {
	t.Helper()
	conn := openConn(t, l, ip("192.0.2.1"))
	if err := conn.BeginSession(t.Context(), user(t, name)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestNoQuotaWithoutBounds(t *testing.T) {
	conn := newSession(t, newLimiter(t, noConnLimits(), nil), "alice")
	defer conn.Close()
	if q := conn.Quota(); q != nil {
		t.Errorf("a quota without bounds: %+v", q)
	}
}

func TestSessionsOfAUserShareAQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noConnLimits()
		cfg.UserQuota = Quotas{CommandsPerSecond: 10, BytesInPerSecond: 1000, BytesOutPerSecond: 2000}
		l := newLimiter(t, cfg, nil)
		one, other, bob := newSession(t, l, "alice"), newSession(t, l, "alice"), newSession(t, l, "bob")
		for range 10 {
			if w := one.Quota().Command() + other.Quota().Command(); w != 0 {
				t.Fatalf("a command within the burst of two seconds waits %v", w)
			}
		}
		if w := other.Quota().Command(); w != 100*time.Millisecond {
			t.Errorf("the command beyond the burst waits %v", w)
		}
		if w := bob.Quota().Command(); w != 0 {
			t.Errorf("another user's command waits %v", w)
		}
		if w := one.Quota().Read(10_000); w != 8*time.Second {
			t.Errorf("10,000 bytes at 1,000 a second, with a burst of 2,000, wait %v", w)
		}
		if w := other.Quota().Written(2000); w != 0 {
			t.Errorf("bytes to the client wait %v for bytes from the client", w)
		}
		time.Sleep(10 * time.Second)
		if w := other.Quota().Read(2000) + other.Quota().Command(); w != 0 {
			t.Errorf("after a pause the user waits %v", w)
		}
		for _, conn := range []*Conn{one, other, bob} {
			conn.Close()
		}
		if n := len(l.quotas.users); n != 0 {
			t.Errorf("%d quotas are left after all sessions ended", n)
		}
	})
}

func TestUploadsOfADayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := noConnLimits()
		cfg.UserQuota = Quotas{AppendBytesPerDay: 1000}
		conn := newSession(t, newLimiter(t, cfg, nil), "alice")
		defer conn.Close()
		for _, message := range []struct {
			n    int64
			fits bool
		}{{600, true}, {500, false}, {1 << 62, false}, {400, true}, {1, false}} {
			if fits := conn.Quota().Upload(t.Context(), message.n); fits != message.fits {
				t.Errorf("Upload of %d bytes: %v, want %v", message.n, fits, message.fits)
			}
		}
		a, err := conn.limiter.InspectUser(t.Context(), user(t, "alice"))
		if err != nil || a.Uploaded != 1000 || a.UploadLimit != 1000 {
			t.Errorf("the status has %d of %d bytes: %v", a.Uploaded, a.UploadLimit, err)
		}
		time.Sleep(24 * time.Hour)
		if a, err = conn.limiter.InspectUser(t.Context(), user(t, "alice")); err != nil || a.Uploaded != 0 {
			t.Errorf("on the next day the status has %d bytes: %v", a.Uploaded, err)
		}
		if !conn.Quota().Upload(t.Context(), 1000) {
			t.Error("an upload on the next day is refused")
		}
	})
}

func TestUploadsAreCountedOverAllGateways(t *testing.T) {
	srv := testbed.StartRedis(t)
	cfg := noConnLimits()
	cfg.UserQuota = Quotas{AppendBytesPerDay: 1000}
	limiterWithRedis := func() *Limiter {
		client := redis.NewClient(&redis.Options{Addr: srv.Address})
		t.Cleanup(func() { _ = client.Close() })
		return newLimiter(t, cfg, client)
	}
	operator := limiterWithRedis()
	first, second := newSession(t, limiterWithRedis(), "alice").Quota(), newSession(t, limiterWithRedis(), "alice").Quota()
	if !first.Upload(t.Context(), 700) || second.Upload(t.Context(), 700) || !second.Upload(t.Context(), 300) || first.Upload(t.Context(), 1) {
		t.Error("two gateways do not count uploads together")
	}
	a, err := operator.InspectUser(t.Context(), user(t, "alice"))
	if err != nil || a.Uploaded != 1000 || a.UploadLimit != 1000 {
		t.Errorf("the status has %d of %d bytes: %v", a.Uploaded, a.UploadLimit, err)
	}
	if a, err = operator.InspectUser(t.Context(), user(t, "bob")); err != nil || a.Uploaded != 0 {
		t.Errorf("the status of a user without uploads has %d bytes: %v", a.Uploaded, err)
	}
	srv.Kill()
	if second.Upload(t.Context(), 1) {
		t.Error("without Redis a gateway does not count earlier uploads")
	}
}
