package oauth

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/breaker"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// startFaultyProvider starts a provider that accepts tokens which begin with "good", answers
// other tokens with odd, and rejects the token of a probe.
func startFaultyProvider(t *testing.T, fault http.HandlerFunc) (v *Verifier, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		switch token := r.FormValue("token"); {
		case strings.HasPrefix(token, "good"):
			_, _ = fmt.Fprintf(w, `{"active":true,"scope":"email","email":%q}`, alice)
		case strings.HasPrefix(token, "odd"):
			fault(w, r)
		default:
			_, _ = w.Write([]byte(`{"active":false}`))
		}
	}))
	t.Cleanup(server.Close)
	v, err := New(testbed.WithDefaults(Config{Settings: Settings{IntrospectionURL: server.URL, Scope: "email"}}, "cache_ttl"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return v, requests
}

func TestLongTokenIsIntrospected(t *testing.T) {
	v, requests := startFaultyProvider(t, http.NotFound)
	long := "good" + strings.Repeat("t", identity.MaxToken-len("good"))
	if subject, err := v.Verify(t.Context(), identity.NewSecret(long)); err != nil || subject.Name != alice {
		t.Errorf("%v, %v", subject, err)
	}
	if _, err := v.Verify(t.Context(), identity.NewSecret(long+"t")); !errors.Is(err, ErrInvalid) || requests.Load() != 1 {
		t.Errorf("%v after %d requests", err, requests.Load())
	}
}

// A slow probe finds the provider up. Tokens that arrive during the probe are not
// refused.
func TestTokensDuringSuccessfulProbeAreVerified(t *testing.T) {
	o := testbed.NewOutage()
	isProbe := func(r *http.Request) bool { return !strings.HasPrefix(r.FormValue("token"), "good") }
	server := httptest.NewServer(o.Handler(isProbe, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"active":true,"scope":"email","email":%q}`, alice)
	}))
	t.Cleanup(server.Close)
	v, err := New(testbed.WithDefaults(Config{Settings: Settings{IntrospectionURL: server.URL, Scope: "email"}}, "cache_ttl"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	o.Run(t, breaker.Threshold+1, ErrUnavailable, func() error {
		_, err := v.Verify(t.Context(), identity.NewSecret("good"))
		return err
	})
}

func TestFailuresForSomeTokensDoNotAffectOthers(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	for what, fault := range map[string]http.HandlerFunc{
		"400": status(400), "401": status(401), "404": status(404), "429": status(429), "500": status(500), "503": status(503),
		"a page": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"half": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("{"))
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"a pause": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "100000")
			w.WriteHeader(429)
		},
		// No HTTP at all: a probe finds that the provider is up.
		"a hang-up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"no HTTP": func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = c.Write([]byte("what?\r\n\r\n"))
				_ = c.Close()
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			v, _ := startFaultyProvider(t, fault)
			for i := range 20 {
				for j := range 2 * breaker.Threshold {
					expectRefused(t, v, fmt.Sprintf("odd-%d-%d", i, j), ErrUnavailable)
				}
				expectAccepted(t, v, fmt.Sprintf("good-%d", i))
			}
		})
	}
}

func TestRetryAfterIsPerToken(t *testing.T) {
	for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		v, requests := startFaultyProvider(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(code)
		})
		for range 10 {
			expectRefused(t, v, "odd-1", ErrUnavailable)
		}
		if n := requests.Load(); n != 1 {
			t.Errorf("%d: %d requests about one token", code, n)
		}
		expectRefused(t, v, "odd-2", ErrUnavailable)
		expectAccepted(t, v, "good-1")
		if n := requests.Load(); n != 3 {
			t.Errorf("%d: %d requests, want 3", code, n)
		}
	}
	for text, want := range map[string]int{
		"": 0, "0": 0, "5": 5, "30": 30, "31": 30, "99999999999999999999": 30, "-1": 0, "1.5": 0, "soon": 0,
		"Wed, 21 Oct 2026 07:28:00 GMT": 0,
	} {
		if got := int(parseRetryAfter(text).Seconds()); got != want {
			t.Errorf("Retry-After: %s: %d s, want %d", text, got, want)
		}
	}
}
