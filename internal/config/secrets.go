package config

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"imapgate/internal/identity"
	"imapgate/internal/plainfile"
)

const (
	maxSecret = 4 << 10 // bytes of a secret's file
	minToken  = 16      // of an admin token and of SCRAM's secret
)

const adminTokenKey = "admin.token_file"

// secrets reads them from their files or from the environment. Its problems
// name the key and the reason only: not what is in the file, and not the file
// either, because an operator may have written the secret in its place.
type secrets struct {
	*problems
	env   func(string) (string, bool)
	files *[]*SecretFile // grows by those that are read
}

func (s secrets) all(c *Config) {
	if c.Redis != nil {
		s.redis(c.Redis)
	}
	s.authHTTP(&c.Auth.HTTP)
	s.oauth(&c.Auth.OAuth)
	s.scram(&c.Auth)
	for name, b := range c.Backends {
		if b.Login == "master" {
			s.master(c, &b)
			c.Backends[name] = b
		}
	}
	c.Admin.Token = s.read(adminTokenKey, c.Admin.TokenFile, "IMAPGATE_ADMIN_TOKEN")
	if n := len(c.Admin.Token.Reveal()); n > 0 && n < minToken {
		s.add(adminTokenKey, "the token has fewer than %d characters", minToken)
	}
	if c.Admin.Token.IsZero() && !loopback(c.Admin.Address) {
		s.add("admin.address", "%s is not on loopback, so a token is needed: token_file or IMAPGATE_ADMIN_TOKEN", quote(c.Admin.Address))
	}
}

func (s secrets) master(c *Config, b *Backend) {
	variable := masterVariable(b.Name)
	key := Below(Below("backends", b.Name), "master")
	for other, o := range c.Backends {
		if _, set := s.env(variable); set && other < b.Name && o.Login == "master" && masterVariable(other) == variable {
			s.add(key, "%s would be the password of %s too; use password_file", variable, other)
		}
	}
	b.Master.Password = s.read(Below(key, "password_file"), b.Master.PasswordFile, variable)
	if b.Master.Password.IsZero() {
		s.add(Below(key, "password_file"), "login: master needs password_file or %s", variable)
	}
}

func masterVariable(backend string) string {
	return "IMAPGATE_MASTER_PASSWORD_" + strings.ToUpper(strings.ReplaceAll(backend, "-", "_"))
}

// read gives the secret of a key, or none.
func (s secrets) read(key, file, variable string) identity.Secret {
	text, set := s.env(variable)
	var wrong string
	switch {
	case file != "" && set:
		wrong = "is set, and so is " + variable + "; only one may be"
	case file != "":
		text, wrong = secretFile(file)
	case !set:
		return identity.Secret{}
	}
	if wrong == "" {
		wrong = secretForm(text)
	}
	switch {
	case wrong != "":
		s.add(key, "%s", wrong)
		return identity.Secret{}
	case file == "":
		return identity.NewSecret(text)
	}
	f := &SecretFile{Key: key, Path: file, least: leastOf(key), fixed: key == scramSecretKey || key == sentinelPasswordKey, live: identity.NewLiveSecret(text)}
	*s.files = append(*s.files, f)
	return f.live.Secret()
}

// secretForm says what is wrong with a secret, or "".
func secretForm(text string) string {
	switch {
	case text == "":
		return "the secret is empty"
	case len(text) > maxSecret:
		return fmt.Sprintf("the secret is longer than %d bytes", maxSecret)
	case strings.ContainsAny(text, "\x00\r\n"):
		return "the secret has more than one line"
	}
	return ""
}

// secretFile reads a file that only its owner and group may read, without the
// newline editors put at its end.
func secretFile(file string) (text, wrong string) {
	f, info, err := plainfile.Open(file)
	switch {
	case errors.Is(err, plainfile.ErrNotRegular):
		return "", "is not a regular file"
	case err != nil:
		return "", plainfile.Bare(err).Error()
	}
	defer f.Close() // it was only read
	switch {
	case info.Mode().Perm()&0o007 != 0:
		return "", "the file may be used by everybody; chmod o= it"
	case info.Size() > maxSecret:
		return "", "the file is too long for a secret"
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+2)) // one too long by then is noticed
	if err != nil {
		return "", plainfile.Bare(err).Error()
	}
	if b, err = plainfile.Text(b); err != nil {
		return "", err.Error()
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), ""
}
