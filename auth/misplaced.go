package auth

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

const (
	// shortSecret is the length in bytes up to which a part of a secret tells nothing of it.
	shortSecret = 3
	// shortMessage is the length in bytes below which a name is not taken for base64.
	shortMessage = 8
	// shortJWT is the same for a JSON Web Token (RFC 7519), which begins as jwtStart.
	shortJWT = 24
	jwtStart = "eyJ"
)

// mayBeSecret reports whether a name that no account can have shows the secret that came
// with it, or looks like a message or a token in the wrong place.
func mayBeSecret(name, secret string) bool {
	lower, secret := strings.ToLower(name), strings.ToLower(secret)
	if secret != "" && strings.Contains(lower, secret) || len(name) > shortSecret && strings.Contains(secret, lower) {
		return true
	}
	if looksSecret(lower) || isMessage(name) {
		return true
	}
	decoded := decoded(name)
	return looksSecret(strings.ToLower(decoded)) || secret != "" && strings.Contains(strings.ToLower(decoded), secret)
}

// looksSecret reports whether text in lower case has what separates a name from a password
// or token: in PLAIN, in XOAUTH2 and OAUTHBEARER, and in URLs and HTTP's Basic.
func looksSecret(lower string) bool {
	return strings.ContainsAny(lower, "\x00\x01:") || strings.Contains(lower, "bearer") || strings.Contains(lower, "auth=")
}

// isMessage reports whether a name, even one that an account can have, is a token or the
// base64 of a message that shows a secret.
func isMessage(name string) bool {
	if strings.HasPrefix(name, jwtStart) && len(name) > shortJWT {
		return true
	}
	message := decoded(name)
	return len(name) >= shortMessage && utf8.ValidString(message) &&
		(strings.Count(message, "\x00") == 2 || strings.Contains(strings.ToLower(message), "auth="))
}

// decoded is what name is the base64 of, padded or not; "" of others.
func decoded(name string) string {
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(name), "="))
	if err != nil {
		return ""
	}
	return string(text)
}
