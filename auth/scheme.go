package auth

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-crypt/crypt/algorithm"
	"github.com/go-crypt/crypt/algorithm/argon2"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"

	"imapgate/internal/identity"
)

// decodedHash is a parsed hash: go-crypt's, scramDigest, pbkdf2Digest or plainDigest.
type decodedHash interface {
	Match(password string) bool
}

// cost is one parameter of a scheme. The upper bounds keep one verification within a few
// seconds of one core and 256 MiB on current hardware.
type cost struct {
	name         string
	min, max     int
	defaultValue int // value of a hash that omits it; 0: required
}

// scheme is one way to store a password, under Dovecot's name.
type scheme struct {
	name          string
	cryptPrefixes []string       // prefixes of a hash without {SCHEME}
	pattern       *regexp.Regexp // the whole hash; group i is the number of costs[i]
	costs         []cost
	decoyFormat   string // Printf format of a hash with these costs and a constant key
	decode        func(hash string) (decodedHash, error)
	hash          func(password string) (string, error)
}

// Digit counts are bounded so that strconv.Atoi cannot overflow a 32-bit int. Decoys are all A
// and all 0.
const (
	argonPattern     = `\$v=19\$m=([0-9]{1,9}),t=([0-9]{1,9}),p=([0-9]{1,9})\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{22,86}$`
	argonDecoyFormat = "$v=19$m=%d,t=%d,p=%d$AAAAAAAAAAAAAAAAAAAAAA$" + decoyKey
	shaPattern       = `(?:rounds=([0-9]{1,9})\$)?[./0-9A-Za-z]{1,16}\$[./0-9A-Za-z]`
	shaDecoyFormat   = "rounds=%d$AAAAAAAAAAAAAAAA$"
	pbkdf2KeySize    = sha1.Size // Dovecot's PBKDF2 is PBKDF2-HMAC-SHA-1 with the full digest
	decoyKey         = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	// RFC 9106 §4, the second recommended option, but with one lane: the verifier divides the
	// cores.
	argonMemory, argonPasses, argonLanes = 64 << 10, 3, 1

	shaRounds    = 100_000 // SHA-crypt's own default, 5000, dates from 2007
	pbkdf2Rounds = 600_000 // OWASP's value for SHA-256; SHA-1 costs about as much
)

// schemes lists the supported schemes; the first is the recommended one. Constant.
var schemes = []scheme{
	{
		name: "ARGON2ID", cryptPrefixes: []string{"$argon2id$"}, costs: argonCosts(), decode: adaptDecoder(argon2.Decode),
		pattern: regexp.MustCompile(`^\$argon2id` + argonPattern), decoyFormat: "$argon2id" + argonDecoyFormat,
		hash: hashArgon2(argon2.VariantID),
	},
	{
		name: "BLF-CRYPT", cryptPrefixes: []string{"$2a$", "$2b$", "$2y$"}, decode: adaptDecoder(bcrypt.Decode),
		pattern:     regexp.MustCompile(`^\$2[aby]\$([0-9]{2})\$[./0-9A-Za-z]{53}$`),
		costs:       []cost{{name: "cost", min: 4, max: 14}},
		decoyFormat: "$2b$%02d$AAAAAAAAAAAAAAAAAAAAA." + decoyKey[:31],
		hash:        hashBcrypt,
	},
	{
		name: "SHA512-CRYPT", cryptPrefixes: []string{"$6$"}, costs: shaCosts(), decode: adaptDecoder(shacrypt.Decode),
		pattern: regexp.MustCompile(`^\$6\$` + shaPattern + `{86}$`), decoyFormat: "$6$" + shaDecoyFormat + decoyKey + decoyKey,
		hash: hashSHA(shacrypt.VariantSHA512),
	},
	{
		name: "SHA256-CRYPT", cryptPrefixes: []string{"$5$"}, costs: shaCosts(), decode: adaptDecoder(shacrypt.Decode),
		pattern: regexp.MustCompile(`^\$5\$` + shaPattern + `{43}$`), decoyFormat: "$5$" + shaDecoyFormat + decoyKey,
		hash: hashSHA(shacrypt.VariantSHA256),
	},
	{
		name: scramSHA256, pattern: regexp.MustCompile(`^([0-9]{1,9}),[A-Za-z0-9+/]{22}==(?:,[A-Za-z0-9+/]{43}=){2}$`),
		costs:       []cost{{name: "iterations", min: 4096, max: 1_000_000}}, // RFC 7677 §4 has the minimum
		decoyFormat: "%d,AAAAAAAAAAAAAAAAAAAAAA==," + decoyKey + "=," + decoyKey + "=",
		decode:      func(hash string) (decodedHash, error) { k, err := decodeScram(hash); return scramDigest(k), err },
		hash:        hashScram,
	},
	{
		// It has no prefix for a bare hash: $1$ alone is MD5-crypt.
		name:        "PBKDF2",
		pattern:     regexp.MustCompile(`^\$1\$[./0-9A-Za-z]{1,64}\$([0-9]{1,9})\$[0-9A-Fa-f]{40}$`),
		costs:       []cost{{name: "rounds", min: 1, max: 5_000_000}},
		decoyFormat: "$1$AAAAAAAAAAAAAAAA$%d$0000000000000000000000000000000000000000", decode: decodePBKDF2, hash: hashPBKDF2,
	},
	{
		name: "ARGON2I", cryptPrefixes: []string{"$argon2i$"}, costs: argonCosts(), decode: adaptDecoder(argon2.Decode),
		pattern: regexp.MustCompile(`^\$argon2i` + argonPattern), decoyFormat: "$argon2i" + argonDecoyFormat,
		hash: hashArgon2(argon2.VariantI),
	},
	{
		name: "PLAIN", pattern: regexp.MustCompile(`^[^\x00-\x1f\x7f]+$`), decoyFormat: "A",
		decode: func(hash string) (decodedHash, error) { return plainDigest(hash), nil },
		hash:   func(p string) (string, error) { return p, nil },
	},
}

// Schemes returns the schemes that Hash supports, the recommended one first.
func Schemes() []string {
	names := make([]string, len(schemes))
	for i := range schemes {
		names[i] = schemes[i].name
	}
	return names
}

// Hash returns the stored form of password: {SCHEME} and the hash.
func Hash(scheme string, password identity.Secret) (string, error) {
	if err := validatePassword(password); err != nil {
		return "", err
	}
	for i := range schemes {
		if s := &schemes[i]; strings.EqualFold(scheme, s.name) {
			hash, err := s.hash(password.Reveal())
			if err != nil {
				return "", fmt.Errorf("hash with %s: %w", s.name, err)
			}
			return "{" + s.name + "}" + hash, nil
		}
	}
	return "", fmt.Errorf("scheme is not one of %s", strings.Join(Schemes(), ", "))
}

// argonCosts returns the bounds of Argon2. 256 MiB is libsodium's "moderate"; its "sensitive"
// (1 GiB) would let a few guesses use up a machine's memory.
func argonCosts() []cost {
	return []cost{
		{name: "memory", min: 8, max: 256 << 10},
		{name: "passes", min: 1, max: 10},
		{name: "lanes", min: 1, max: 16},
	}
}

// shaCosts returns the bounds of SHA-crypt. Its authors set 1000 as the minimum of rounds and
// 5000 as the default.
func shaCosts() []cost {
	return []cost{{name: "rounds", min: 1000, max: 1_000_000, defaultValue: 5000}}
}

// adaptDecoder adapts a decoder of go-crypt.
func adaptDecoder(decode func(string) (algorithm.Digest, error)) func(string) (decodedHash, error) {
	return func(hash string) (decodedHash, error) { return decode(hash) }
}

// hashWith returns a function that hashes with one of go-crypt's hashers.
func hashWith[H algorithm.Hash, O any](newHasher func(...O) (H, error), options ...O) func(password string) (string, error) {
	return func(password string) (string, error) {
		hasher, err := newHasher(options...)
		if err != nil {
			return "", err
		}
		d, err := hasher.Hash(password)
		if err != nil {
			return "", err
		}
		return d.Encode(), nil
	}
}

func hashArgon2(v argon2.Variant) func(string) (string, error) {
	return hashWith(argon2.New, argon2.WithVariant(v), argon2.WithM(argonMemory), argon2.WithT(argonPasses), argon2.WithP(argonLanes))
}

func hashSHA(v shacrypt.Variant) func(string) (string, error) {
	return hashWith(shacrypt.New, shacrypt.WithVariant(v), shacrypt.WithRounds(shaRounds))
}

// hashBcrypt refuses a password that bcrypt would truncate. Cost 10 is OWASP's minimum, and
// every login pays it: no result is cached.
func hashBcrypt(password string) (string, error) {
	if len(password) > bcrypt.PasswordInputSizeMax {
		return "", errors.New("bcrypt ignores what follows the 72nd byte of a password; choose another scheme")
	}
	return hashWith(bcrypt.New, bcrypt.WithIterations(10))(password)
}

// pbkdf2Digest is Dovecot's {PBKDF2}: $1$salt$rounds$hex.
type pbkdf2Digest struct {
	salt   []byte
	rounds int
	key    []byte
}

// Match implements decodedHash.
func (d pbkdf2Digest) Match(password string) bool {
	key, err := pbkdf2.Key(sha1.New, password, d.salt, d.rounds, pbkdf2KeySize)
	return err == nil && subtle.ConstantTimeCompare(key, d.key) == 1
}

func decodePBKDF2(hash string) (decodedHash, error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 5 {
		return nil, errMalformedHash
	}
	rounds, err := strconv.Atoi(parts[3])
	if err != nil {
		return nil, errMalformedHash
	}
	key, err := hex.DecodeString(parts[4])
	if err != nil || len(key) != pbkdf2KeySize {
		return nil, errMalformedHash
	}
	return pbkdf2Digest{[]byte(parts[2]), rounds, key}, nil
}

func hashPBKDF2(password string) (string, error) {
	salt := rand.Text()
	key, err := pbkdf2.Key(sha1.New, password, []byte(salt), pbkdf2Rounds, pbkdf2KeySize)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("$1$%s$%d$%x", salt, pbkdf2Rounds, key), nil
}

// plainDigest is the password itself, for tests.
type plainDigest string

// Match implements decodedHash. It compares sums, so that the time does not depend on the
// length.
func (d plainDigest) Match(password string) bool {
	want, got := sha256.Sum256([]byte(d)), sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}
