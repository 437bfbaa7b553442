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

// ErrOrder is an order that no gateway can carry out, or a question nobody can
// answer: the operator's mistake, which its text explains.
var ErrOrder = errors.New("cannot be done")

// Order is a ban as an operator asks for it.
type Order struct {
	Who string        `json:"who"` // an address or a network
	For time.Duration `json:"for"` // nanoseconds, or a text such as "10m" or "7d"
	Why string        `json:"why"`
}

// Limits is what there is to see and to change of limits and bans. Errors that are
// no ErrOrder mean that it cannot be done now.
type Limits struct {
	Show    func(ctx context.Context, who string) (any, error) // of a user or an address
	Forgive func(ctx context.Context, who string) (any, error) // a user's failed logins
	Bans    func(ctx context.Context) (any, error)
	Ban     func(ctx context.Context, o Order) (any, error)
	Unban   func(ctx context.Context, who string) (any, error)
}

// show answers ?who=NAME with what is counted of a user or an address.
func (l Limits) show(w http.ResponseWriter, r *http.Request) { asked(w, r, l.Show) }

// forgive forgets the failed logins of ?who=USER.
func (l Limits) forgive(w http.ResponseWriter, r *http.Request) { asked(w, r, l.Forgive) }

// remove ends the ban of ?who=ADDRESS.
func (l Limits) remove(w http.ResponseWriter, r *http.Request) { asked(w, r, l.Unban) }

func asked(w http.ResponseWriter, r *http.Request, call func(context.Context, string) (any, error)) {
	who := r.URL.Query()["who"]
	if len(who) != 1 || who[0] == "" {
		say(w, http.StatusBadRequest, "one address or user is needed: ?who=192.0.2.7")
		return
	}
	result, err := call(r.Context(), who[0])
	conclude(w, result, err)
}

func (l Limits) list(w http.ResponseWriter, r *http.Request) {
	result, err := l.Bans(r.Context())
	conclude(w, result, err)
}

// add bans whom the body names.
func (l Limits) add(w http.ResponseWriter, r *http.Request) {
	var o Order
	asked := struct {
		*Order
		For json.RawMessage `json:"for"`
	}{Order: &o}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	var large *http.MaxBytesError
	switch err := d.Decode(&asked); {
	case errors.As(err, &large):
		say(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return
	case err != nil || d.More():
		say(w, http.StatusBadRequest, `the body is not {"who": ADDRESS, "for": DURATION, "why": TEXT}`)
		return
	}
	var err error
	if o.For, err = lengthOf(asked.For); err != nil {
		say(w, http.StatusBadRequest, err.Error())
		return
	}
	result, err := l.Ban(r.Context(), o)
	conclude(w, result, err)
}

// lengthOf reads a time as people write it, or nanoseconds as programs do.
func lengthOf(value json.RawMessage) (d time.Duration, err error) {
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

func conclude(w http.ResponseWriter, result any, err error) {
	switch {
	case errors.Is(err, ErrOrder):
		say(w, http.StatusBadRequest, err.Error())
	case err != nil:
		say(w, http.StatusServiceUnavailable, err.Error())
	default:
		answer(w, result)
	}
}
