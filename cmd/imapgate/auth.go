package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/oauth"
	"imapgate/internal/config"
)

func authConfig(cfg *config.Config) auth.Config {
	made := auth.Config{
		Methods:     cfg.Auth.Methods,
		Names:       cfg.Auth.Spelling,
		File:        cfg.Auth.File.Path,
		Verifiers:   cfg.Limits.Verifiers,
		Mechanisms:  cfg.Auth.Mechanisms,
		Listeners:   make(map[string][]string),
		SCRAMSecret: cfg.Auth.SCRAMSecret,
		SCRAMRounds: cfg.Auth.SCRAMIterations,
		External:    cfg.Auth.External.SAN,
	}
	for _, l := range cfg.Listeners {
		if len(l.Mechanisms) > 0 {
			made.Listeners[l.Name] = l.Mechanisms
		}
	}
	return made
}

// judges are those whom auth's methods ask, besides Redis.
type judges struct {
	servers *authServers    // nil without the method http
	tokens  *oauth.Verifier // nil without the method oauth
}

// openJudges connects to nobody.
func openJudges(cfg *config.Config, f *files, log *zap.Logger) (j judges, err error) {
	servers, wrong := openAuthServers(cfg, f, log)
	j.servers = servers
	if slices.Contains(cfg.Auth.Methods, auth.OAuth) {
		made := cfg.Auth.OAuth.Config()
		made.TLS = f.client(oauthKey) // each server of the provider is verified by the name in its URL
		j.tokens, err = oauth.New(made, log)
	}
	return j, errors.Join(wrong, err)
}

func (j judges) close() {
	if j.servers != nil {
		j.servers.asker.Close()
	}
}

// sources are the judges in auth's words.
func (j judges) sources(redis auth.PasswordLookup) auth.Sources {
	from := auth.Sources{Redis: redis}
	if j.servers != nil {
		from.HTTP = j.servers.ask
	}
	if j.tokens != nil {
		from.OAuth = j.verify
	}
	return from
}

// verify is auth.VerifyToken.
func (j judges) verify(ctx context.Context, token secret) (string, time.Time, error) {
	who, err := j.tokens.Verify(ctx, token)
	switch {
	case errors.Is(err, oauth.ErrInvalid):
		err = fmt.Errorf("%w: %w", auth.ErrDenied, err)
	case err != nil:
		err = fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
	return who.Name, who.Expires, err
}

// refusal is what clients are told whose token is refused.
func (j judges) refusal() auth.TokenRefusal {
	if j.tokens == nil {
		return auth.TokenRefusal{}
	}
	return auth.TokenRefusal{Scope: j.tokens.Scope(), Configuration: j.tokens.Configuration()}
}

func (g *gateway) openAuth() error {
	var err error
	if g.judges, err = openJudges(g.cfg, g.files, g.log); err != nil {
		return err
	}
	var passwords auth.PasswordLookup
	if g.redis != nil {
		passwords = g.password
	}
	g.auth, err = auth.New(authConfig(g.cfg), g.judges.sources(passwords), g.log)
	return atSetting(err)
}

// atSetting gives an error of auth.New its key.
func atSetting(err error) error {
	var of *auth.SettingError
	if errors.As(err, &of) {
		return config.At("auth."+of.Setting, of.Err)
	}
	return config.At("auth", err)
}
