package testkit

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Encodings returns the forms in which a secret could appear, also backwards.
func Encodings(secret string) []string {
	backwards := []byte(secret)
	slices.Reverse(backwards)
	return append(forwardEncodings(secret), forwardEncodings(string(backwards))...)
}

func forwardEncodings(secret string) []string {
	inHex := hex.EncodeToString([]byte(secret))
	all := []string{secret, inHex, strings.ToUpper(inHex), url.QueryEscape(secret), url.PathEscape(secret)}
	for before := range 3 { // preceding bytes shift base64
		coded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + secret))
		all = append(all, coded[4:len(coded)-3])
	}
	return all
}

// FindSecrets searches a text for secrets in all their encodings. The keys of secrets are
// their names. It returns a description of each secret that it finds.
func FindSecrets(text string, secrets map[string]string) (found []string) {
	for name, secret := range secrets {
		for _, form := range Encodings(secret) {
			if i := strings.Index(text, form); i >= 0 {
				found = append(found, fmt.Sprintf("%s shows as %s in …%s…", name, form, text[max(0, i-300):min(len(text), i+100)]))
			}
		}
	}
	return found
}
