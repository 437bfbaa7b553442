package legacy

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// send sends a request of an operation to its endpoint, and returns what arrived there and
// the response.
func send[Request, Response any](t *testing.T, o Operation[Request, Response], request Request, response Response, err error) (Request, *httptest.ResponseRecorder) {
	t.Helper()
	var arrived Request
	endpoint := Handle(o, func(_ context.Context, request Request) (Response, error) {
		arrived = request
		return response, err
	})
	r, requestErr := o.NewRequest(t.Context(), "127.0.0.1:9143", request)
	if requestErr != nil {
		t.Fatal(requestErr)
	}
	if r.Method != endpoint.Method || r.URL.Path != endpoint.Path || r.Host != "127.0.0.1:9143" {
		t.Errorf("%s %s to %s", r.Method, r.URL, r.Host)
	}
	w := httptest.NewRecorder()
	endpoint.Serve(w, r)
	return arrived, w
}

func TestRequestsAndResponsesArriveUnchanged(t *testing.T) {
	ban := BanRequest{"192.0.2.7", Duration(time.Hour), "a note"}
	if arrived, w := send(t, AddBan, ban, Ban{Network: "192.0.2.7", Count: 2}, nil); arrived != ban || w.Code != 200 {
		t.Errorf("%+v, %d %s", arrived, w.Code, w.Body)
	} else if want := `{"network":"192.0.2.7","why":"","until":"0001-01-01T00:00:00Z","count":2}`; strings.TrimSpace(w.Body.String()) != want {
		t.Errorf("%s", w.Body)
	}
	if arrived, w := send(t, RemoveBans, "2001:db8::/32&x=y", RemovedBans{}, nil); arrived != "2001:db8::/32&x=y" || w.Code != 200 {
		t.Errorf("%q, %d %s", arrived, w.Code, w.Body)
	}
	if _, w := send(t, ListBans, None{}, []Ban{}, nil); w.Code != 200 || strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if _, w := send(t, ShowLimits, "", LimitStatus{}, nil); w.Code != 400 || !strings.Contains(w.Body.String(), "who needs one value: /v1/limits?who=") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for want, err := range map[int]error{400: ErrBadRequest, 503: errors.New("down")} {
		if _, w := send(t, ResetLimits, "alice", LimitsReset{}, err); w.Code != want || strings.TrimSpace(w.Body.String()) != err.Error() {
			t.Errorf("%v: %d %s", err, w.Code, w.Body)
		}
	}
}
