package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"imapgate/internal/admin/legacy"
	"imapgate/internal/identity"
)

// fakeBans is a test's own list of bans.
type fakeBans map[string]legacy.BanRequest

// server returns the handler of a server of this list.
func (f fakeBans) server(token string) http.Handler {
	deps := Deps{Metrics: http.NotFoundHandler(), Legacy: []legacy.Endpoint{
		legacy.Handle(legacy.ShowLimits, func(_ context.Context, who string) (legacy.LimitStatus, error) {
			return legacy.LimitStatus{Subject: who}, nil
		}),
		legacy.Handle(legacy.ListBans, func(context.Context, legacy.None) (all []legacy.Ban, err error) {
			for net, ban := range f {
				all = append(all, legacy.Ban{Network: net, Note: ban.Note})
			}
			return all, nil
		}),
		legacy.Handle(legacy.AddBan, func(_ context.Context, o legacy.BanRequest) (legacy.Ban, error) {
			switch o.Subject {
			case "nobody":
				return legacy.Ban{}, fmt.Errorf("%w: that is no address", legacy.ErrBadRequest)
			case "192.0.2.99":
				return legacy.Ban{}, errors.New("Redis is down")
			}
			f[o.Subject] = o
			return legacy.Ban{Network: o.Subject}, nil
		}),
		legacy.Handle(legacy.RemoveBans, func(_ context.Context, who string) (legacy.RemovedBans, error) {
			delete(f, who)
			return legacy.RemovedBans{Networks: []string{who}}, nil
		}),
	}}
	return newServer(Settings{Address: "127.0.0.1:9143", Token: identity.NewSecret(token)}, deps).filter
}

// sendChange sends a request that changes something, as an operator's program would;
// modify changes the request first.
func sendChange(h http.Handler, method, body string, modify func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://127.0.0.1:9143/v1/bans", strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:4711"
	r.Header.Set("Authorization", "Bearer "+token)
	if method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json")
	}
	modify(r)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const banBody = `{"who":"192.0.2.7","for":3600000000000,"why":"by hand"}`

func TestABanIsAddedListedAndRemoved(t *testing.T) {
	l := fakeBans{}
	g := l.server(token)
	if w := sendChange(g, "POST", banBody, func(*http.Request) {}); w.Code != 200 || l["192.0.2.7"].Duration != legacy.Duration(time.Hour) {
		t.Fatalf("%d %s, %v", w.Code, w.Body, l)
	}
	var listed []legacy.Ban
	w := sendChange(g, "GET", "", func(*http.Request) {})
	if err := json.Unmarshal(w.Body.Bytes(), &listed); err != nil || len(listed) != 1 || listed[0].Note != "by hand" {
		t.Fatalf("%v: %s", err, w.Body)
	}
	if w := sendChange(g, "DELETE", "", func(r *http.Request) { r.URL.RawQuery = "who=192.0.2.7" }); w.Code != 200 || len(l) != 0 {
		t.Fatalf("%d %s, %v", w.Code, w.Body, l)
	}
}

func TestBanDurationTakesTextOrNanoseconds(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`"10m"`: 10 * time.Minute, `"72h"`: 72 * time.Hour, `"7d"`: 168 * time.Hour, `600000000000`: 10 * time.Minute, `"-1h"`: -time.Hour, // which package limit refuses
		`"10"`: 0, `""`: 0, `null`: 0, `1.5`: 0, `1e30`: 0, `true`: 0, `[1]`: 0, `"10 minutes"`: 0,
	} {
		l := fakeBans{}
		g := l.server(token)
		w := sendChange(g, "POST", `{"who":"192.0.2.7","why":"by hand","for":`+text+`}`, func(*http.Request) {})
		if want == 0 {
			if w.Code != 400 || len(l) != 0 || !strings.Contains(w.Body.String(), "is not a duration") {
				t.Errorf("%s: %d %s", text, w.Code, w.Body)
			}
		} else if w.Code != 200 || l["192.0.2.7"] != (legacy.BanRequest{Subject: "192.0.2.7", Duration: legacy.Duration(want), Note: "by hand"}) {
			t.Errorf("%s: %d %s, %+v", text, w.Code, w.Body, l)
		}
	}
}

func TestForgedChangesAreRefused(t *testing.T) {
	tests := map[string]struct {
		method, body string
		change       func(*http.Request)
		want         int
	}{
		"no token":                  {"POST", banBody, func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		"a wrong token":             {"POST", banBody, func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, 401},
		"a foreign host":            {"POST", banBody, func(r *http.Request) { r.Host = "evil.example" }, 421},
		"a foreign origin":          {"POST", banBody, func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, 403},
		"another site":              {"POST", banBody, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		"another site's end":        {"DELETE", "", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, 403},
		"a form":                    {"POST", banBody, func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 415},
		"a long body":               {"POST", strings.Repeat(" ", maxBody) + banBody, func(*http.Request) {}, 413},
		"a long chunked body":       {"POST", strings.Repeat(" ", maxBody) + banBody, func(r *http.Request) { r.ContentLength = -1 }, 413},
		"no JSON":                   {"POST", "who=x", func(*http.Request) {}, 400},
		"two bodies":                {"POST", banBody + banBody, func(*http.Request) {}, 400},
		"an unknown key":            {"POST", `{"whom":"192.0.2.7"}`, func(*http.Request) {}, 400},
		"an invalid address":        {"POST", `{"who":"nobody","for":"1h"}`, func(*http.Request) {}, 400},
		"removal without a subject": {"DELETE", "", func(*http.Request) {}, 400},
		"a body at the end":         {"DELETE", "x", func(r *http.Request) { r.URL.RawQuery = "who=192.0.2.7" }, 413},
		"not now":                   {"POST", `{"who":"192.0.2.99","for":"1h"}`, func(*http.Request) {}, 503},
		"another method":            {"PUT", banBody, func(*http.Request) {}, 405},
		"another page":              {"POST", banBody, func(r *http.Request) { r.URL.Path = "/v1/limits" }, 405},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := fakeBans{}
			g := l.server(token)
			if w := sendChange(g, test.method, test.body, test.change); w.Code != test.want {
				t.Errorf("status %d, want %d: %s", w.Code, test.want, w.Body)
			}
			if len(l) != 0 {
				t.Errorf("the change was made: %v", l)
			}
		})
	}
}

func TestChangesNeedAToken(t *testing.T) {
	l := fakeBans{}
	g := l.server("")
	if w := sendChange(g, "POST", banBody, func(*http.Request) {}); w.Code != 403 || len(l) != 0 {
		t.Errorf("status %d, %v", w.Code, l)
	}
	if w := sendChange(g, "GET", "", func(*http.Request) {}); w.Code != 200 {
		t.Errorf("status %d for a GET", w.Code)
	}
}
