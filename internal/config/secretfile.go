package config

import (
	"errors"
	"fmt"

	"imapgate/internal/identity"
)

// SecretFile is a secret that was read from a file, and can be read again. What it was
// read for has the new content from then on.
type SecretFile struct {
	// Set once.
	Key   string // that names the file
	Path  string
	least int                // characters that it must have
	valid func(string) error // nil: whatever a secret may be
	fixed bool               // a new content needs a restart
	live  *identity.LiveSecret
}

// leastOf is how many characters the secret of a key must have.
func leastOf(key string) int {
	if key == adminTokenKey || key == scramSecretKey {
		return minToken
	}
	return 1
}

// Files implements follow.Source.
func (f *SecretFile) Files() []string { return []string{f.Path} }

// Reload implements follow.Source. Its error has nothing of what is in the file.
func (f *SecretFile) Reload() (changed bool, err error) {
	text, wrong := secretFile(f.Path)
	if wrong == "" {
		wrong = secretForm(text)
	}
	if wrong == "" && len(text) < f.least {
		wrong = fmt.Sprintf("the secret has fewer than %d characters", f.least)
	}
	switch {
	case wrong != "":
		return false, errors.New(wrong)
	case f.valid != nil && f.valid(text) != nil:
		return false, f.valid(text)
	case text == f.live.Secret().Reveal():
		return false, nil
	case f.fixed:
		return false, errors.New("the secret has changed, which needs a restart")
	}
	f.live.Replace(text)
	return true, nil
}
