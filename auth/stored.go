package auth

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"imapgate/internal/identity"
)

// maxStored bounds a stored password in bytes: a {PLAIN} one of the full length.
const maxStored = maxPassword + 64

// Why a stored password is refused. Constant texts: what stands in its place
// may be a secret, so nothing of it is ever quoted.
var (
	errNoScheme  = errors.New("password has no {SCHEME} and is no known crypt string")
	errScheme    = errors.New("password scheme is unknown")
	errMalformed = errors.New("password hash is malformed")
)

// maxCosts is the most parameters a scheme has.
const maxCosts = 3

// kind is what decides how long a verification takes: a scheme and its costs.
// The zero kind is none. Comparable.
type kind struct {
	scheme *scheme
	costs  [maxCosts]int
}

// decoy is a stored password of this kind that nobody chose.
func (k kind) decoy() stored {
	args := make([]any, len(k.scheme.costs))
	for i := range args {
		args[i] = k.costs[i]
	}
	return stored{k, identity.NewSecret(fmt.Sprintf(k.scheme.decoy, args...))}
}

// fallbackKind is paid for an unknown user while no source has shown what its
// passwords cost: what Hash would make by its first choice.
func fallbackKind() kind {
	return kind{&schemes[0], [maxCosts]int{argonMemory, argonPasses, argonLanes}}
}

// stored is a password as a source keeps it: checked, not yet verified.
type stored struct {
	// Set once.
	kind kind
	hash identity.Secret // without the {SCHEME}
}

// Format implements fmt.Formatter: fmt would show the unexported hash.
func (s stored) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[stored password]") }

// match hashes password as s was hashed and compares in constant time.
func (s stored) match(password identity.Secret) bool {
	d, err := s.kind.scheme.decode(s.hash.Reveal())
	return err == nil && d.Match(password.Reveal())
}

// parse reads a stored password: {SCHEME} in front, in any case as with
// Dovecot, or a bare crypt string, which may also be called {CRYPT}. Costs out
// of bounds are refused here, before anything has been computed, so that a
// slip of the operator or a poisoned record cannot stop the machine.
func parse(text identity.Secret) (stored, error) {
	hash := text.Reveal()
	if len(hash) > maxStored {
		return stored{}, errMalformed
	}
	name := "CRYPT"
	if rest, ok := strings.CutPrefix(hash, "{"); ok {
		if name, hash, ok = strings.Cut(rest, "}"); !ok {
			return stored{}, errScheme
		}
	}
	if strings.EqualFold(name, "CRYPT") {
		return parseBare(hash)
	}
	for i := range schemes {
		if strings.EqualFold(name, schemes[i].name) {
			return schemes[i].parse(hash)
		}
	}
	return stored{}, errScheme
}

// parseBare finds the scheme by what the hash starts with.
func parseBare(hash string) (stored, error) {
	for i := range schemes {
		for _, id := range schemes[i].bare {
			if strings.HasPrefix(hash, id) {
				return schemes[i].parse(hash)
			}
		}
	}
	return stored{}, errNoScheme
}

// parse checks form and costs of a hash in this scheme.
func (s *scheme) parse(hash string) (stored, error) {
	groups := s.form.FindStringSubmatch(hash)
	if groups == nil {
		return stored{}, errMalformed
	}
	k := kind{scheme: s}
	for i, c := range s.costs {
		n, err := c.read(groups[i+1])
		if err != nil {
			return stored{}, err
		}
		k.costs[i] = n
	}
	if _, err := s.decode(hash); err != nil {
		return stored{}, errMalformed
	}
	return stored{k, identity.NewSecret(hash)}, nil
}

// read is the value of one cost parameter, within its bounds.
func (c cost) read(digits string) (int, error) {
	if digits == "" && c.omitted != 0 {
		return c.omitted, nil
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, errMalformed
	}
	if n < c.least || n > c.most {
		return 0, fmt.Errorf("%s of the password hash is not within %d and %d", c.name, c.least, c.most)
	}
	return n, nil
}
