package auth

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"imapgate/internal/identity"
)

// maxStoredHash bounds a stored password in bytes: a {PLAIN} one of the full length.
const maxStoredHash = maxPassword + 64

// Reasons to refuse a stored password. Constant texts: the stored text may be a secret, so no
// error quotes it.
var (
	errNoScheme      = errors.New("password has no {SCHEME} and is no known crypt string")
	errUnknownScheme = errors.New("password scheme is unknown")
	errMalformedHash = errors.New("password hash is malformed")
)

// maxCosts is the largest number of parameters of a scheme.
const maxCosts = 3

// hashParams determines how long a verification takes: a scheme and its costs. The zero value
// has no scheme. Comparable.
type hashParams struct {
	scheme *scheme
	costs  [maxCosts]int
}

// newDecoy returns a stored password with these parameters and a constant key.
func (p hashParams) newDecoy() storedHash {
	args := make([]any, len(p.scheme.costs))
	for i := range args {
		args[i] = p.costs[i]
	}
	return storedHash{p, identity.NewSecret(fmt.Sprintf(p.scheme.decoyFormat, args...))}
}

// defaultHashParams returns the cost of an unknown user while no source has shown its own: that
// of a hash by the first of schemes.
func defaultHashParams() hashParams {
	return hashParams{&schemes[0], [maxCosts]int{argonMemory, argonPasses, argonLanes}}
}

// storedHash is a password as a source stores it: well-formed, not yet verified.
type storedHash struct {
	// Set once.
	params hashParams
	hash   identity.Secret // without the {SCHEME}
}

// Format implements fmt.Formatter. Without it fmt would print the unexported hash.
func (s storedHash) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[stored password]") }

// matches hashes password with the parameters of s and compares in constant time.
func (s storedHash) matches(password identity.Secret) bool {
	d, err := s.params.scheme.decode(s.hash.Reveal())
	return err == nil && d.Match(password.Reveal())
}

// parseStoredHash parses a stored password: {SCHEME} in any case, as with Dovecot, and the
// hash, or a bare crypt string, with or without {CRYPT}. It refuses costs out of bounds before
// anything is computed, so that a typing error or a forged record cannot stop the machine.
func parseStoredHash(text identity.Secret) (storedHash, error) {
	hash := text.Reveal()
	if len(hash) > maxStoredHash {
		return storedHash{}, errMalformedHash
	}
	name := "CRYPT"
	if rest, ok := strings.CutPrefix(hash, "{"); ok {
		if name, hash, ok = strings.Cut(rest, "}"); !ok {
			return storedHash{}, errUnknownScheme
		}
	}
	if strings.EqualFold(name, "CRYPT") {
		return parseCrypt(hash)
	}
	for i := range schemes {
		if strings.EqualFold(name, schemes[i].name) {
			return schemes[i].parse(hash)
		}
	}
	return storedHash{}, errUnknownScheme
}

// CheckStoredHash returns an error if no password can be verified with a stored one.
func CheckStoredHash(text identity.Secret) error {
	_, err := parseStoredHash(text)
	return err
}

// parseCrypt finds the scheme by the prefix of the hash.
func parseCrypt(hash string) (storedHash, error) {
	for i := range schemes {
		for _, id := range schemes[i].cryptPrefixes {
			if strings.HasPrefix(hash, id) {
				return schemes[i].parse(hash)
			}
		}
	}
	return storedHash{}, errNoScheme
}

// parse checks the form and the costs of a hash of this scheme.
func (s *scheme) parse(hash string) (storedHash, error) {
	groups := s.pattern.FindStringSubmatch(hash)
	if groups == nil {
		return storedHash{}, errMalformedHash
	}
	params := hashParams{scheme: s}
	for i, c := range s.costs {
		n, err := c.parse(groups[i+1])
		if err != nil {
			return storedHash{}, err
		}
		params.costs[i] = n
	}
	if _, err := s.decode(hash); err != nil {
		return storedHash{}, errMalformedHash
	}
	return storedHash{params, identity.NewSecret(hash)}, nil
}

// parse returns the value of a cost parameter and checks its bounds.
func (c cost) parse(digits string) (int, error) {
	if digits == "" && c.defaultValue != 0 {
		return c.defaultValue, nil
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, errMalformedHash
	}
	if n < c.min || n > c.max {
		return 0, fmt.Errorf("%s of the password hash is not between %d and %d", c.name, c.min, c.max)
	}
	return n, nil
}
