package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/internal/config"
)

// authHTTPServers adapts the client of the auth servers to auth's method http: the
// two packages do not import each other.
type authHTTPServers struct{ client *authhttp.Client }

// openAuthHTTPServers returns nil if no method uses the auth servers.
func openAuthHTTPServers(cfg *config.Config, f *watchedFiles, log *zap.Logger) (*authHTTPServers, error) {
	if !slices.Contains(cfg.Auth.Methods, auth.HTTP) {
		return nil, nil
	}
	// Each server is verified by the name in its URL.
	client, err := authhttp.New(authhttp.Config{Settings: cfg.Auth.HTTP, TLS: f.clientTLS(authHTTPKey), ClientCerts: cfg.TLS.ClientCA != ""}, log)
	if err != nil {
		return nil, config.WithKey("auth.http", err)
	}
	return &authHTTPServers{client}, nil
}

// verifyLogin implements auth.VerifyLogin.
func (a *authHTTPServers) verifyLogin(ctx context.Context, l auth.Login) (auth.ServerResponse, error) {
	answer, err := a.client.Authenticate(ctx, newAuthHTTPRequest(l))
	var denial *authhttp.Denial
	switch {
	case errors.As(err, &denial) && denial.Delay > 0:
		return auth.ServerResponse{}, &auth.DelayedDenial{Delay: denial.Delay, Err: fmt.Errorf("%w: %w", auth.ErrDenied, err)}
	case errors.Is(err, authhttp.ErrDenied):
		return auth.ServerResponse{}, fmt.Errorf("%w: %w", auth.ErrDenied, err)
	case errors.Is(err, authhttp.ErrNoResponse):
		return auth.ServerResponse{}, fmt.Errorf("%w: %w: %w", auth.ErrUnavailable, auth.ErrNoResponse, err)
	case err != nil:
		return auth.ServerResponse{}, fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
	return auth.ServerResponse{BackendAddr: answer.BackendAddr, LoginName: answer.LoginName, Password: answer.Password}, nil
}

func newAuthHTTPRequest(l auth.Login) authhttp.Request {
	q := authhttp.Request{Method: authhttp.MethodPlain, User: l.User.String(), Password: l.Password, Attempt: 1}
	if l.Mechanism == auth.SASLExternal {
		q.Method = authhttp.MethodExternal
	}
	if c := l.Client; c != nil {
		q.Attempt, q.ClientAddr, q.TLS = c.Attempt, c.Addr.Addr(), c.TLS
		if c.ProxyHeader != nil {
			q.ProxyHeader = &authhttp.ProxyHeader{Source: c.ProxyHeader.Client, Server: c.ProxyHeader.Local}
		}
	}
	return q
}
