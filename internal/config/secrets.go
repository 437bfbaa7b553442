package config

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"imapgate/internal/identity"
	"imapgate/internal/plainfile"
)

const (
	maxSecret = 4 << 10 // bytes of a secret's file
	minToken  = 16      // of an admin token
)

// secrets reads them from their files or from the environment. Its problems
// name the key and the reason only: not what is in the file, and not the file
// either, because an operator may have written the secret in its place.
type secrets struct {
	*problems
	env func(string) (string, bool)
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
	c.Admin.Token = s.read("admin.token_file", c.Admin.TokenFile, "IMAPGATE_ADMIN_TOKEN")
	if n := len(c.Admin.Token.Reveal()); n > 0 && n < minToken {
		s.add("admin.token_file", "the token has fewer than %d characters", minToken)
	}
	if c.Admin.Token.IsZero() && !loopback(c.Admin.Address) {
		s.add("admin.address", "%s is not on loopback, so a token is needed: token_file or IMAPGATE_ADMIN_TOKEN", quote(c.Admin.Address))
	}
}

func (s secrets) master(c *Config, b *Backend) {
	variable := masterVariable(b.Name)
	key := below(below("backends", b.Name), "master")
	for other, o := range c.Backends {
		if _, set := s.env(variable); set && other < b.Name && o.Login == "master" && masterVariable(other) == variable {
			s.add(key, "%s would be the password of %s too; use password_file", variable, other)
		}
	}
	b.Master.Password = s.read(below(key, "password_file"), b.Master.PasswordFile, variable)
	if b.Master.Password.IsZero() {
		s.add(below(key, "password_file"), "login: master needs password_file or %s", variable)
	}
}

func masterVariable(backend string) string {
	return "IMAPGATE_MASTER_PASSWORD_" + strings.ToUpper(strings.ReplaceAll(backend, "-", "_"))
}

// read gives the secret of a key, or none.
func (s secrets) read(key, file, variable string) identity.Secret {
	text, set := s.env(variable)
	if file != "" {
		if set {
			s.add(key, "is set, and so is %s; only one may be", variable)
			return identity.Secret{}
		}
		var wrong string
		if text, wrong = secretFile(file); wrong != "" {
			s.add(key, "%s", wrong)
			return identity.Secret{}
		}
	} else if !set {
		return identity.Secret{}
	}
	switch {
	case text == "":
		s.add(key, "the secret is empty")
	case len(text) > maxSecret:
		s.add(key, "the secret is longer than %d bytes", maxSecret)
	case strings.ContainsAny(text, "\x00\r\n"):
		s.add(key, "the secret has more than one line")
	default:
		return identity.NewSecret(text)
	}
	return identity.Secret{}
}

// secretFile reads a file that only its owner and group may read, without the
// newline editors put at its end.
func secretFile(file string) (text, wrong string) {
	f, info, err := plainfile.Open(file)
	switch {
	case errors.Is(err, plainfile.ErrNotRegular):
		return "", "is not a regular file"
	case err != nil:
		return "", bare(err)
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
		return "", bare(err)
	}
	if b, err = plainfile.Text(b); err != nil {
		return "", err.Error()
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r"), ""
}

// bare is an error of package os without the path.
func bare(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return err.Error()
}
