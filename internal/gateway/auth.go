package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/auth/oauth"
	"imapgate/internal/config"
)

func authConfig(cfg *config.Config) auth.Config {
	out := auth.Config{Settings: cfg.Auth.Settings, HashSettings: cfg.Limits.HashSettings, ListenerMechanisms: make(map[string][]string)}
	for _, l := range cfg.Listeners {
		if len(l.Mechanisms) > 0 {
			out.ListenerMechanisms[l.Name] = l.Mechanisms
		}
	}
	return out
}

// authSources are the sources of auth's methods, besides Redis.
type authSources struct {
	authHTTP *authhttp.Client // nil without the method http
	tokens   *oauth.Verifier  // nil without the method oauth
}

// openAuthSources creates the clients of the sources. It opens no connection. Each server
// is verified by the name in its URL.
func openAuthSources(cfg *config.Config, f *watchedFiles, log *zap.Logger) (s authSources, err error) {
	var serversErr error
	if slices.Contains(cfg.Auth.Methods, auth.HTTP) {
		s.authHTTP, serversErr = authhttp.New(authhttp.Config{Settings: cfg.Auth.HTTP, TLS: f.clientTLS(authHTTPKey), ClientCerts: cfg.TLS.ClientCA != ""}, log)
	}
	if slices.Contains(cfg.Auth.Methods, auth.OAuth) {
		s.tokens, err = oauth.New(oauth.Config{Settings: cfg.Auth.OAuth, TLS: f.clientTLS(oauthKey)}, log)
	}
	return s, errors.Join(config.WithKey("auth.http", serversErr), err)
}

func (a authSources) close() {
	if a.authHTTP != nil {
		a.authHTTP.Close()
	}
}

// toAuth returns the sources in the form that package auth needs.
func (a authSources) toAuth(redis auth.PasswordLookup) auth.Sources {
	out := auth.Sources{Redis: redis}
	if a.authHTTP != nil {
		out.HTTP = a.verifyLogin
	}
	if a.tokens != nil {
		out.OAuth = a.verifyToken
	}
	return out
}

// verifyToken implements auth.VerifyToken.
func (a authSources) verifyToken(ctx context.Context, token secret) (string, time.Time, error) {
	identity, err := a.tokens.Verify(ctx, token)
	switch {
	case errors.Is(err, oauth.ErrInvalid):
		err = fmt.Errorf("%w: %w", auth.ErrDenied, err)
	case err != nil:
		err = fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
	return identity.Name, identity.Expires, err
}

// tokenRefusal returns what clients get after a refused token.
func (a authSources) tokenRefusal() auth.TokenRefusal {
	if a.tokens == nil {
		return auth.TokenRefusal{}
	}
	return auth.TokenRefusal{Scope: a.tokens.Scope(), DiscoveryURL: a.tokens.DiscoveryURL()}
}

func (g *Gateway) openAuth() error {
	var err error
	if g.authSources, err = openAuthSources(g.cfg, g.files, g.log); err != nil {
		return err
	}
	var passwords auth.PasswordLookup
	if g.redis != nil {
		passwords = g.lookupPassword
	}
	g.auth, err = auth.New(authConfig(g.cfg), g.authSources.toAuth(passwords), g.log)
	return withSettingKey(err)
}

func withSettingKey(err error) error {
	var settingErr *auth.SettingError
	if errors.As(err, &settingErr) {
		return config.WithKey("auth."+settingErr.Setting, settingErr.Err)
	}
	return config.WithKey("auth", err)
}

// verifyLogin implements auth.VerifyLogin with the auth servers: the two packages do not
// import each other.
func (a authSources) verifyLogin(ctx context.Context, l auth.Login) (auth.ServerResponse, error) {
	answer, err := a.authHTTP.Authenticate(ctx, newAuthHTTPRequest(l))
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
