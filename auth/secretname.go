package auth

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

const (
	// minSecretPart is the length in bytes up to which a part of a secret reveals nothing about
	// it.
	minSecretPart = 3
	// minEncodedMessage is the least length in bytes of a name that may be base64.
	minEncodedMessage = 8
	// minJWT is the length in bytes up to which a name is not a JSON Web Token (RFC 7519),
	// which begins with jwtPrefix.
	minJWT    = 24
	jwtPrefix = "eyJ"
)

// mayContainSecret reports whether a name that no account can have contains the secret sent
// with it. It also reports a name that looks like a message or a token in the wrong place.
func mayContainSecret(name, secret string) bool {
	lower, secret := strings.ToLower(name), strings.ToLower(secret)
	if secret != "" && strings.Contains(lower, secret) || len(name) > minSecretPart && strings.Contains(secret, lower) {
		return true
	}
	if looksLikeSecret(lower) || isSASLMessage(name) {
		return true
	}
	text := decodeBase64(name)
	return looksLikeSecret(strings.ToLower(text)) || secret != "" && strings.Contains(strings.ToLower(text), secret)
}

// looksLikeSecret reports whether text in lower case has a separator between a name and a
// password or token. The separators are those of PLAIN, XOAUTH2, OAUTHBEARER, URLs and HTTP
// Basic.
func looksLikeSecret(lower string) bool {
	return strings.ContainsAny(lower, "\x00\x01:") || strings.Contains(lower, "bearer") || strings.Contains(lower, "auth=")
}

// isSASLMessage reports whether a name, even one that an account can have, is a token or the
// base64 of a message that contains a secret.
func isSASLMessage(name string) bool {
	if strings.HasPrefix(name, jwtPrefix) && len(name) > minJWT {
		return true
	}
	message := decodeBase64(name)
	return len(name) >= minEncodedMessage && utf8.ValidString(message) &&
		(strings.Count(message, "\x00") == 2 || strings.Contains(strings.ToLower(message), "auth="))
}

// decodeBase64 decodes name, with or without padding; "" if it is not base64.
func decodeBase64(name string) string {
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(name), "="))
	if err != nil {
		return ""
	}
	return string(text)
}
