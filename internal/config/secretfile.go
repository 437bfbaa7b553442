package config

import (
	"errors"
	"fmt"

	"imapgate/internal/identity"
)

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
	if problem == "" {
		problem = checkSecret(text)
	}
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
