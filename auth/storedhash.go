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

// Why a stored password is refused. Constant texts: what stands in its place
// may be a secret, so nothing of it is ever quoted.
var (
	errNoScheme      = errors.New("password has no {SCHEME} and is no known crypt string")
	errUnknownScheme = errors.New("password scheme is unknown")
	errMalformedHash = errors.New("password hash is malformed")
)

// maxCosts is the most parameters a scheme has.
const maxCosts = 3

// hashParams is what decides how long a verification takes: a scheme and its costs.
// The zero kind is none. Comparable.
type hashParams struct {
	scheme *scheme
	costs  [maxCosts]int
}

// newDecoy is a stored password of this kind that nobody chose.
func (k hashParams) newDecoy() storedHash {
	args := make([]any, len(k.scheme.costs))
	for i := range args {
		args[i] = k.costs[i]
	}
	return storedHash{k, identity.NewSecret(fmt.Sprintf(k.scheme.decoyFormat, args...))}
}

// defaultHashParams is paid for an unknown user while no source has shown what its
// passwords cost: what Hash would make by its first choice.
func defaultHashParams() hashParams {
	return hashParams{&schemes[0], [maxCosts]int{argonMemory, argonPasses, argonLanes}}
}

// storedHash is a password as a source keeps it: checked, not yet verified.
type storedHash struct {
	// Set once.
	params hashParams
	hash   identity.Secret // without the {SCHEME}
}

// Format implements fmt.Formatter: fmt would show the unexported hash.
func (s storedHash) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[stored password]") }

// matches hashes password as s was hashed and compares in constant time.
func (s storedHash) matches(password identity.Secret) bool {
	d, err := s.params.scheme.decode(s.hash.Reveal())
	return err == nil && d.Match(password.Reveal())
}

// parseStoredHash reads a stored password: {SCHEME} in front, in any case as with
// Dovecot, or a bare crypt string, which may also be called {CRYPT}. Costs out
// of bounds are refused here, before anything has been computed, so that a
// slip of the operator or a poisoned record cannot stop the machine.
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

// parseCrypt finds the scheme by what the hash starts with.
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

// parse checks form and costs of a hash in this scheme.
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

// parse is the value of one cost parameter, within its bounds.
func (c cost) parse(digits string) (int, error) {
	if digits == "" && c.defaultValue != 0 {
		return c.defaultValue, nil
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, errMalformedHash
	}
	if n < c.min || n > c.max {
		return 0, fmt.Errorf("%s of the password hash is not within %d and %d", c.name, c.min, c.max)
	}
	return n, nil
}
