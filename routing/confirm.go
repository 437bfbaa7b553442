package routing

import (
	"context"
	"errors"
	"fmt"

	"imapgate/internal/identity"
)

// ErrMoved means that a user's route has changed since a Lookup.
var ErrMoved = errors.New("route has changed")

// Confirm looks up a route again and returns nil if old is still valid. It returns ErrMoved if
// the backend or the login name there has changed, and the errors of Lookup except
// ErrUnavailable: while the current route is unknown, old stays valid.
func (r *Router) Confirm(ctx context.Context, u identity.User, old Route) error {
	current, err := r.lookup(ctx, u)
	switch {
	case errors.Is(err, ErrUnavailable):
		return nil
	case err != nil:
		return err
	case current.Backend != old.Backend || current.Login != old.Login:
		return fmt.Errorf("%w: from %s to %s by %s", ErrMoved, old.Backend, current.Backend, current.Key)
	}
	return nil
}
