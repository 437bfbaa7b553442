package login

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// testResolver resolves two names and counts the lookups.
type testResolver struct {
	names   map[string][]netip.Addr
	slow    map[string]bool // answers only when the context ends
	lookups atomic.Int32
}

func (z *testResolver) resolve(ctx context.Context, _, host string) ([]netip.Addr, error) {
	z.lookups.Add(1)
	if z.slow[host] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if addrs, ok := z.names[host]; ok {
		return addrs, nil
	}
	return nil, errors.New("no such host")
}

func newTestIndex(z *testResolver, backends map[string]string) *backendIndex {
	made := make(map[string]*upstream.Backend)
	for name, address := range backends {
		made[name] = upstream.New(testbed.WithDefaults(upstream.Config{Name: name, Settings: upstream.Settings{Address: address, TLS: event.NoTLS}}), upstream.Hooks{}, zap.NewNop())
	}
	p := newBackendIndex(made, time.Minute)
	p.resolve = z.resolve
	return p
}

func TestBackendAddressSpellingsAreEqual(t *testing.T) {
	p := newTestIndex(&testResolver{}, map[string]string{
		"v6": "[2001:DB8:0:0::0007]:993", "mapped": "[::ffff:192.0.2.7]:143", "v4": "192.0.2.8:143", "b": "192.0.2.9:143", "a": "[::ffff:192.0.2.9]:143",
	})
	for text, want := range map[string]string{
		"[2001:db8::7]:993": "v6", "192.0.2.7:143": "mapped", "[::ffff:192.0.2.8]:143": "v4", "192.0.2.9:143": "a",
		"[2001:db8::7]:143": "", "192.0.2.10:143": "",
	} {
		got, err := p.find(t.Context(), netip.MustParseAddrPort(text))
		if got != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, routing.ErrUnavailable) {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	if _, err := p.find(t.Context(), netip.AddrPort{}); !errors.Is(err, routing.ErrUnavailable) {
		t.Errorf("no address at all: %v", err)
	}
}

func TestBackendNameResolutionIsCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, moved := netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")
		z := &testResolver{names: map[string][]netip.Addr{"east.internal": {netip.MustParseAddr("192.0.2.1"), first}}}
		p := newTestIndex(z, map[string]string{"east": "east.internal:993"})
		look := func(addr netip.Addr, port uint16, want string, asked int32) {
			t.Helper()
			if got, err := p.find(t.Context(), netip.AddrPortFrom(addr, port)); got != want || (err == nil) != (want != "") || z.lookups.Load() != asked {
				t.Errorf("%v: %q, %v, and %d lookups; want %q and %d", addr, got, err, z.lookups.Load(), want, asked)
			}
		}
		look(first, 143, "", 0) // another port: no lookup needed
		look(first, 993, "east", 1)
		z.names["east.internal"] = []netip.Addr{moved}
		<-time.After(59 * time.Second)
		look(first, 993, "east", 1)
		<-time.After(2 * time.Second)
		look(first, 993, "", 2)
		look(moved, 993, "east", 2)
	})
}

func TestResolverOutageMakesRoutesUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := netip.MustParseAddrPort("192.0.2.7:993")
		z := &testResolver{names: map[string][]netip.Addr{}, slow: map[string]bool{"dead.internal": true}}
		p := newTestIndex(z, map[string]string{"dead": "dead.internal:993", "east": "east.internal:993", "fixed": "192.0.2.9:993"})
		start := time.Now()
		if got, err := p.find(t.Context(), at); got != "" || !errors.Is(err, routing.ErrUnavailable) || time.Since(start) != resolveTimeout {
			t.Errorf("%q, %v after %v", got, err, time.Since(start))
		}
		if got, err := p.find(t.Context(), at); got != "" || !errors.Is(err, routing.ErrUnavailable) || time.Since(start) != resolveTimeout || z.lookups.Load() != 3 { // the error of the lookup two seconds ago
			t.Errorf("immediately after it: %q, %v after %v, %d lookups", got, err, time.Since(start), z.lookups.Load())
		}
		if got, err := p.find(t.Context(), netip.MustParseAddrPort("192.0.2.9:993")); got != "fixed" || err != nil {
			t.Errorf("a backend without a name: %q, %v", got, err)
		}
		<-time.After(resolveRetry)
		z.names["east.internal"] = []netip.Addr{at.Addr()} // resolves again, for one of the two
		if got, err := p.find(t.Context(), at); got != "east" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		<-time.After(time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.find(ctx, at); !errors.Is(err, routing.ErrUnavailable) {
			t.Error(err)
		}
		if got, err := p.find(t.Context(), at); got != "east" || err != nil {
			t.Errorf("a cancelled client affects another: %q, %v", got, err)
		}
	})
}

// A backend is found by any of its addresses, also by those of a later configuration.
func TestBackendsAreFoundByAllTheirAddresses(t *testing.T) {
	z := &testResolver{names: map[string][]netip.Addr{"m2.internal": {netip.MustParseAddr("192.0.2.2")}, "m3.internal": {netip.MustParseAddr("192.0.2.3")}}}
	cfg := testbed.WithDefaults(upstream.Config{Name: "east", Settings: upstream.Settings{TLS: event.NoTLS, Addresses: []upstream.AddressSettings{{Address: "192.0.2.1:143"}, {Address: "m2.internal:143"}}}})
	east := upstream.New(cfg, upstream.Hooks{}, zap.NewNop())
	x := newBackendIndex(map[string]*upstream.Backend{"east": east}, time.Minute)
	x.resolve = z.resolve
	check := func(what string, want map[string]string) {
		t.Helper()
		for text, backend := range want {
			if got, err := x.find(t.Context(), netip.MustParseAddrPort(text)); got != backend || (err == nil) != (backend != "") {
				t.Errorf("%s, %s: %q, %v", what, text, got, err)
			}
		}
	}
	check("at first", map[string]string{"192.0.2.1:143": "east", "192.0.2.2:143": "east", "192.0.2.3:143": "", "192.0.2.2:993": ""})
	cfg.Addresses = []upstream.AddressSettings{{Address: "m3.internal:143"}}
	east.Apply(cfg)
	check("with another configuration", map[string]string{"192.0.2.1:143": "", "192.0.2.2:143": "", "192.0.2.3:143": "east"})
	for i := range maxNames + 10 {
		x.named(fmt.Sprint("m", i, ".internal:1"))
	}
	if len(x.names) > maxNames {
		t.Errorf("%d names are remembered", len(x.names))
	}
	check("after many names", map[string]string{"192.0.2.3:143": "east"})
}
