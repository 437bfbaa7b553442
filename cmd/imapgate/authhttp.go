package main

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

// authServers are asked for auth's method http. The two rooms do not know each
// other, so what one says is put into the other's words here.
type authServers struct{ asker *authhttp.Asker }

// openAuthServers is nil when no method asks them.
func openAuthServers(cfg *config.Config, f *files, log *zap.Logger) (*authServers, error) {
	if !slices.Contains(cfg.Auth.Methods, auth.HTTP) {
		return nil, nil
	}
	made := cfg.Auth.HTTP.Config()
	made.ClientCerts = cfg.TLS.ClientCA != ""
	made.TLS = f.client(authHTTPKey) // each server is verified by the name in its URL
	asker, err := authhttp.New(made, log)
	if err != nil {
		return nil, config.At("auth.http", err)
	}
	return &authServers{asker}, nil
}

// ask is auth.Ask.
func (s *authServers) ask(ctx context.Context, l auth.Login) (auth.Answer, error) {
	answer, err := s.asker.Ask(ctx, questionOf(l))
	var denial *authhttp.Denial
	switch {
	case errors.As(err, &denial) && denial.Wait > 0:
		return auth.Answer{}, &auth.Wait{For: denial.Wait, Err: fmt.Errorf("%w: %w", auth.ErrDenied, err)}
	case errors.Is(err, authhttp.ErrDenied):
		return auth.Answer{}, fmt.Errorf("%w: %w", auth.ErrDenied, err)
	case errors.Is(err, authhttp.ErrUnanswered):
		return auth.Answer{}, fmt.Errorf("%w: %w: %w", auth.ErrUnavailable, auth.ErrUnanswered, err)
	case err != nil:
		return auth.Answer{}, fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
	return auth.Answer{Server: answer.Server, User: answer.User, Password: answer.Password}, nil
}

func questionOf(l auth.Login) authhttp.Question {
	q := authhttp.Question{Method: authhttp.Plain, User: l.User.String(), Password: l.Password, Attempt: 1}
	if l.Mechanism == auth.SASLExternal {
		q.Method = authhttp.External
	}
	if c := l.Client; c != nil {
		q.Attempt, q.Client, q.TLS = c.Attempt, c.Addr.Addr(), c.TLS
		if c.Balancer != nil {
			q.Proxy = &authhttp.Proxy{Source: c.Balancer.Client, Server: c.Balancer.Local}
		}
	}
	return q
}
