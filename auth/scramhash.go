package auth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
)

const (
	// scramSaltSize is the length in bytes of every salt, as in Dovecot. Other lengths are
	// refused: they would distinguish a user from unknown ones.
	scramSaltSize = 16
	// defaultScramIterations is the cost of a login, for the client with SCRAM and for the
	// gateway with PLAIN.
	defaultScramIterations = 100_000
)

// scramDigest is Dovecot's {SCRAM-SHA-256}: iterations,salt,stored key,server key.
type scramDigest scram.StoredCredentials

// Match implements decodedHash.
func (d scramDigest) Match(password string) bool {
	derived, err := deriveScramKeys(password, d.KeyFactors)
	return err == nil && subtle.ConstantTimeCompare(derived.StoredKey, d.StoredKey) == 1
}

// decodeScram decodes the stored form, which scheme.parse has checked.
func decodeScram(hash string) (scram.StoredCredentials, error) {
	parts := strings.Split(hash, ",")
	if len(parts) != 4 {
		return scram.StoredCredentials{}, errMalformedHash
	}
	iterations, err := strconv.Atoi(parts[0])
	if err != nil {
		return scram.StoredCredentials{}, errMalformedHash
	}
	var raw [3][]byte
	for i, text := range parts[1:] {
		if raw[i], err = base64.StdEncoding.Strict().DecodeString(text); err != nil {
			return scram.StoredCredentials{}, errMalformedHash
		}
	}
	if len(raw[0]) != scramSaltSize || len(raw[1]) != sha256.Size || len(raw[2]) != sha256.Size {
		return scram.StoredCredentials{}, errMalformedHash
	}
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(raw[0]), Iters: iterations}, StoredKey: raw[1], ServerKey: raw[2],
	}, nil
}

func hashScram(password string) (string, error) {
	salt := make([]byte, scramSaltSize)
	_, _ = rand.Read(salt) // never fails
	k, err := deriveScramKeys(password, scram.KeyFactors{Salt: string(salt), Iters: defaultScramIterations})
	if err != nil {
		return "", err
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%d,%s,%s,%s", k.Iters, b64(salt), b64(k.StoredKey), b64(k.ServerKey)), nil
}

// deriveScramKeys derives the stored keys (RFC 5802 §3). A password that SASLprep refuses is
// used unchanged, as clients do.
func deriveScramKeys(password string, f scram.KeyFactors) (scram.StoredCredentials, error) {
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil {
		password = prepared
	}
	salted, err := pbkdf2.Key(sha256.New, password, []byte(f.Salt), f.Iters, sha256.Size)
	if err != nil {
		return scram.StoredCredentials{}, err
	}
	clientKey := hmacSHA256(salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	return scram.StoredCredentials{KeyFactors: f, StoredKey: stored[:], ServerKey: hmacSHA256(salted, "Server Key")}, nil
}

func hmacSHA256(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}
