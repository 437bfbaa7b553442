package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"imapgate/internal/duration"
)

// ErrBadRequest is an operator's mistake: a request that no gateway can execute. Its
// text explains it.
var ErrBadRequest = errors.New("invalid request")

// BanRequest is an operator's request for a ban.
type BanRequest struct {
	Subject  string        `json:"who"` // an address or a network
	Duration time.Duration `json:"for"` // nanoseconds, or a text such as "10m" or "7d"
	Note     string        `json:"why"`
}

// Limits has the functions that show and change limits and bans. Errors other than
// ErrBadRequest mean that the request may succeed later.
type Limits struct {
	ShowLimits  func(ctx context.Context, who string) (any, error) // who is a user or an address
	ResetLimits func(ctx context.Context, who string) (any, error) // of a user's failed logins
	ListBans    func(ctx context.Context) (any, error)
	AddBan      func(ctx context.Context, o BanRequest) (any, error)
	RemoveBans  func(ctx context.Context, who string) (any, error)
}

// serveLimits returns the limits of ?who=NAME, a user or an address.
func (l Limits) serveLimits(w http.ResponseWriter, r *http.Request) { serveQuery(w, r, l.ShowLimits) }

// serveReset resets the failed logins of ?who=USER.
func (l Limits) serveReset(w http.ResponseWriter, r *http.Request) { serveQuery(w, r, l.ResetLimits) }

// serveBanRemoval removes the bans of ?who=ADDRESS.
func (l Limits) serveBanRemoval(w http.ResponseWriter, r *http.Request) {
	serveQuery(w, r, l.RemoveBans)
}

func serveQuery(w http.ResponseWriter, r *http.Request, call func(context.Context, string) (any, error)) {
	subjects := r.URL.Query()["who"]
	if len(subjects) != 1 || subjects[0] == "" {
		writeText(w, http.StatusBadRequest, "one address or user is needed: ?who=192.0.2.7")
		return
	}
	result, err := call(r.Context(), subjects[0])
	writeResult(w, result, err)
}

func (l Limits) serveBanList(w http.ResponseWriter, r *http.Request) {
	result, err := l.ListBans(r.Context())
	writeResult(w, result, err)
}

// serveBanAddition adds the ban in the request body.
func (l Limits) serveBanAddition(w http.ResponseWriter, r *http.Request) {
	var ban BanRequest
	body := struct {
		*BanRequest
		For json.RawMessage `json:"for"`
	}{BanRequest: &ban}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	var tooLarge *http.MaxBytesError
	switch err := d.Decode(&body); {
	case errors.As(err, &tooLarge):
		writeText(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return
	case err != nil || d.More():
		writeText(w, http.StatusBadRequest, `the body is not {"who": ADDRESS, "for": DURATION, "why": TEXT}`)
		return
	}
	var err error
	if ban.Duration, err = parseDuration(body.For); err != nil {
		writeText(w, http.StatusBadRequest, err.Error())
		return
	}
	result, err := l.AddBan(r.Context(), ban)
	writeResult(w, result, err)
}

// parseDuration parses a duration as text, or as a number of nanoseconds.
func parseDuration(value json.RawMessage) (d time.Duration, err error) {
	var text string
	if json.Unmarshal(value, &text) == nil {
		d, err = duration.Parse(text)
	} else {
		err = json.Unmarshal(value, &d)
	}
	if err != nil {
		return 0, fmt.Errorf(`for: %s is not a duration: "10m", "72h", "7d", or a number of nanoseconds`, cmp.Or(string(value), "nothing"))
	}
	return d, nil
}

func writeResult(w http.ResponseWriter, result any, err error) {
	switch {
	case errors.Is(err, ErrBadRequest):
		writeText(w, http.StatusBadRequest, err.Error())
	case err != nil:
		writeText(w, http.StatusServiceUnavailable, err.Error())
	default:
		writeJSON(w, result)
	}
}
