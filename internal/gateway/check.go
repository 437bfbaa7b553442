package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/internal/config"
	"imapgate/internal/plainfile"
	"imapgate/routing"
)

// Check returns all problems of the files that a configuration names, with which Open
// would fail, and warnings about settings that are valid but probably unintended. Both
// have their positions in the configuration. Check opens no connection and writes nothing.
func Check(cfg *config.Config) (problems, warnings error) {
	watched, err := openFiles(cfg, zap.NewNop())
	errs := []error{err}
	addErr := func(err error) { errs = append(errs, err) }
	sources, err := openAuthSources(cfg, watched, zap.NewNop())
	addErr(err)
	if err == nil {
		_, err = auth.New(authConfig(cfg), sources.toAuth(lookupNoPassword), zap.NewNop())
		addErr(withSettingKey(err))
	}
	if cfg.Routing.Source != routing.SourceRedis {
		_, err := routing.New(routingConfig(cfg), nil, routing.Metrics{}, zap.NewNop())
		addErr(config.WithKey("routing", err))
	}
	addErr(checkAuditFiles(cfg))
	warned := errors.Join(Warnings(cfg), watched.warnings(time.Now()))
	return cfg.Locate(errors.Join(errs...)), cfg.Locate(warned)
}

// lookupNoPassword replaces Redis where no user logs in.
func lookupNoPassword(context.Context, user) (secret, error) { return secret{}, auth.ErrUnknown }

// Warnings returns warnings about valid settings that are probably mistakes: errors of
// config.WithKey, joined.
func Warnings(cfg *config.Config) error {
	return errors.Join(slices.Concat(warnReuse(cfg), warnPasswordless(cfg), warnCleartext(cfg), warnSnapshot(cfg))...)
}

func newWarning(key, format string, args ...any) error {
	return config.WithKey(key, fmt.Errorf(format, args...))
}

// warnSnapshot warns about a snapshot of routes that the gateway would not use,
// although it starts.
func warnSnapshot(cfg *config.Config) (warnings []error) {
	if cfg.Routing.Snapshot == "" {
		return nil
	}
	if err := routing.CheckSnapshot(cfg.Routing.Snapshot); err != nil {
		warnings = append(warnings, newWarning("routing.snapshot", "%w; the gateway starts without it", err))
	}
	if err := plainfile.CheckReplace(cfg.Routing.Snapshot); err != nil {
		warnings = append(warnings, newWarning("routing.snapshot", "no snapshot will be written: %w", err))
	}
	return warnings
}

// warnCleartext warns about auth servers that get passwords, and secrets in headers,
// over a network without TLS.
func warnCleartext(cfg *config.Config) (warnings []error) {
	if !slices.Contains(cfg.Auth.Methods, auth.HTTP) {
		return nil
	}
	for i, raw := range cfg.Auth.HTTP.URLs {
		u, err := authhttp.ParseURL(raw)
		if err != nil || u.Scheme == "https" || u.Hostname() == "localhost" {
			continue
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && addr.Unmap().IsLoopback() {
			continue
		}
		warnings = append(warnings, newWarning(config.ItemKey("auth.http.urls", i), "http to %s: passwords travel in the clear, and an attacker in between can let anyone in; use https", u.Host))
	}
	return warnings
}

// warnPasswordless warns about backends that clients without a password cannot use:
// SCRAM and EXTERNAL yield no password for the backend's login.
func warnPasswordless(cfg *config.Config) (warnings []error) {
	passwordless := slices.DeleteFunc(slices.Clone(cfg.Auth.Mechanisms), func(name string) bool {
		return name != "EXTERNAL" && !strings.HasPrefix(name, "SCRAM")
	})
	if len(cfg.Auth.Mechanisms) == 0 && cfg.Auth.External.SAN != "" {
		passwordless = []string{"EXTERNAL"}
	}
	if slices.Contains(cfg.Auth.Methods, auth.HTTP) { // it can provide a password for the backend
		passwordless = slices.DeleteFunc(passwordless, func(name string) bool { return name == "EXTERNAL" })
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Backends)) {
		if b := cfg.Backends[name]; len(passwordless) > 0 && b.Login != "master" {
			warnings = append(warnings, newWarning(config.MemberKey("backends", name), "login: %s does not work for clients that log in with %s, which yield no password or token: they get UNAVAILABLE. Use login: master",
				b.Login, strings.Join(passwordless, ", ")))
		}
	}
	return warnings
}

// warnReuse warns about backends for which mode reuse has no effect: if only the
// backend can verify credentials, each login needs its own connection.
func warnReuse(cfg *config.Config) (warnings []error) {
	for _, name := range slices.Sorted(maps.Keys(cfg.Backends)) {
		b := cfg.Backends[name]
		kinds, cache := backendVerified(cfg.Auth, b.Login), "mux.credential_cache, or "
		if b.Mux.CredentialCache { // it applies to passwords
			kinds = slices.DeleteFunc(kinds, func(kind string) bool { return kind == "passwords" })
		}
		if !slices.Contains(kinds, "passwords") {
			cache = ""
		}
		if unverified := strings.Join(kinds, " and "); unverified != "" && b.Mode == "reuse" {
			warnings = append(warnings, newWarning(config.MemberKey("backends", name), "mode reuse needs %s%s that the gateway can verify: no connection will be reused for clients with %[2]s",
				cache, unverified))
		}
	}
	return warnings
}

// backendVerified returns the kinds of credentials that only the backend verifies.
func backendVerified(a config.Auth, login string) (kinds []string) {
	if !slices.Contains(a.Methods, auth.Passthrough) || login == "master" {
		return nil
	}
	containsAny := func(list []string, names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(list, name) })
	}
	if login != "oauth" && !containsAny(a.Methods, auth.File, auth.Redis, auth.HTTP) && (len(a.Mechanisms) == 0 || containsAny(a.Mechanisms, "PLAIN", "LOGIN")) {
		kinds = append(kinds, "passwords")
	}
	if !containsAny(a.Methods, auth.OAuth) && containsAny(a.Mechanisms, auth.OAuthBearer, auth.XOAuth2) {
		kinds = append(kinds, "tokens")
	}
	return kinds
}
