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
	maxSecretBytes = 4 << 10 // bytes of a secret's file
	minTokenLength = 16      // characters of an admin token and of SCRAM's secret
)

const adminTokenKey = "admin.token_file"

// secrets reads secrets from their files or from the environment. Its problems name
// the key and the reason only. They contain neither the file's content nor its name,
// because an operator may have written the secret in its place.
type secrets struct {
	*problems
	env   func(string) (string, bool)
	files *[]*SecretFile // receives the files that are read
}

func (s secrets) readAll(c *Config) {
	if c.Redis != nil {
		s.readRedis(c.Redis)
	}
	s.readAuthHTTP(&c.Auth.HTTP)
	s.readOAuth(&c.Auth.OAuth)
	s.readSCRAM(&c.Auth)
	for name, b := range c.Backends {
		if b.Login == "master" {
			s.readMaster(c, &b)
		}
		if b.Health.PasswordFile != "" {
			b.Health.Password = s.readSecret(MemberKey("backends", name)+".health.password_file", b.Health.PasswordFile, "")
		}
		c.Backends[name] = b
	}
	c.Admin.Token = s.readSecret(adminTokenKey, c.Admin.TokenFile, "IMAPGATE_ADMIN_TOKEN")
	if n := len(c.Admin.Token.Reveal()); n > 0 && n < minTokenLength {
		s.add(adminTokenKey, "the token has fewer than %d characters", minTokenLength)
	}
	if a := c.Admin; a.Address != "" && !isLoopback(a.Address) {
		if a.Token.IsZero() && a.TokensFile == "" {
			s.add("admin.address", "%s is not on loopback, so a token is needed: token_file, tokens_file or IMAPGATE_ADMIN_TOKEN", quote(a.Address))
		}
		if a.TLS == nil {
			s.add("admin.address", "%s is not on loopback, so admin.tls is needed: tokens must not travel in the clear", quote(a.Address))
		}
	}
}

func (s secrets) readMaster(c *Config, b *Backend) {
	variable := masterPasswordVariable(b.Name)
	key := MemberKey(MemberKey("backends", b.Name), "master")
	for other, o := range c.Backends {
		if _, set := s.env(variable); set && other < b.Name && o.Login == "master" && masterPasswordVariable(other) == variable {
			s.add(key, "%s would be the password of %s too; use password_file", variable, other)
		}
	}
	b.Master.Password = s.readSecret(MemberKey(key, "password_file"), b.Master.PasswordFile, variable)
	if b.Master.Password.IsZero() {
		s.add(MemberKey(key, "password_file"), "login: master needs password_file or %s", variable)
	}
}

func masterPasswordVariable(backend string) string {
	return "IMAPGATE_MASTER_PASSWORD_" + strings.ToUpper(strings.ReplaceAll(backend, "-", "_"))
}

// readSecret returns the secret of a key, or the zero Secret if it has none.
func (s secrets) readSecret(key, file, variable string) identity.Secret {
	text, set := s.env(variable)
	var problem string
	switch {
	case file != "" && set:
		problem = "is set, and so is " + variable + "; only one may be"
	case file != "":
		text, problem = readSecretFile(file)
	case set:
		problem = checkSecret(text)
	default:
		return identity.Secret{}
	}
	switch {
	case problem != "":
		s.add(key, "%s", problem)
		return identity.Secret{}
	case file == "":
		return identity.NewSecret(text)
	}
	f := &SecretFile{Key: key, Path: file, minLength: minSecretLength(key), needsRestart: key == scramSecretKey || key == sentinelPasswordKey, secret: identity.NewLiveSecret(text)}
	*s.files = append(*s.files, f)
	return f.secret.Secret()
}

// checkSecret returns what is wrong with a secret, or "".
func checkSecret(text string) string {
	switch {
	case text == "":
		return "the secret is empty"
	case len(text) > maxSecretBytes:
		return fmt.Sprintf("the secret is longer than %d bytes", maxSecretBytes)
	case strings.ContainsAny(text, "\x00\r\n"):
		return "the secret has more than one line"
	}
	return ""
}

// readSecretFile reads a file that only its owner and group may access, without the
// newline that editors put at its end.
func readSecretFile(file string) (text, problem string) {
	f, info, err := plainfile.Open(file)
	switch {
	case errors.Is(err, plainfile.ErrNotRegular):
		return "", "is not a regular file"
	case err != nil:
		return "", plainfile.WithoutPath(err).Error()
	}
	defer f.Close() // it was only read
	switch {
	case info.Mode().Perm()&0o007 != 0:
		return "", fmt.Sprintf("the file is accessible to other users; run: chmod o= %q", file)
	case info.Size() > maxSecretBytes:
		return "", "the file is too long for a secret"
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+2)) // one byte beyond the longest with a newline, so that excess is noticed
	if err != nil {
		return "", plainfile.WithoutPath(err).Error()
	}
	if b, err = plainfile.DecodeText(b); err != nil {
		return "", err.Error()
	}
	text = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	return text, checkSecret(text)
}

// SecretFile is a secret that was read from a file and can be reloaded. All users of
// the secret then get the new content.
type SecretFile struct {
	// Set once.
	Key          string // the key that names the file
	Path         string
	minLength    int                // characters
	validate     func(string) error // nil: any secret is valid
	needsRestart bool               // new content needs a restart
	secret       *identity.LiveSecret
}

// minSecretLength returns the minimum number of characters of a key's secret.
func minSecretLength(key string) int {
	if key == adminTokenKey || key == scramSecretKey {
		return minTokenLength
	}
	return 1
}

// Files implements follow.Source.
func (f *SecretFile) Files() []string { return []string{f.Path} }

// Reload implements follow.Source. Its error never contains the file's content.
func (f *SecretFile) Reload() (changed bool, err error) {
	text, problem := readSecretFile(f.Path)
	if problem == "" && len(text) < f.minLength {
		problem = fmt.Sprintf("the secret has fewer than %d characters", f.minLength)
	}
	switch {
	case problem != "":
		return false, errors.New(problem)
	case f.validate != nil && f.validate(text) != nil:
		return false, f.validate(text)
	case text == f.secret.Secret().Reveal():
		return false, nil
	case f.needsRestart:
		return false, errors.New("the secret has changed, which needs a restart")
	}
	f.secret.Replace(text)
	return true, nil
}
