package routing

import (
	"context"
	"errors"
	"fmt"

	"imapgate/internal/identity"
)

// ErrMoved is returned by Confirm for a route that has become another.
var ErrMoved = errors.New("route has changed")

// Confirm looks again at a route that Lookup gave some time ago, and returns nil
// when it stands. Errors are Lookup's, but for ErrUnavailable: while nobody knows,
// it stands. ErrMoved means another backend, or another name there.
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
