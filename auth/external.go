package auth

import (
	"crypto/x509"
	"errors"
	"strings"

	"imapgate/internal/identity"
)

// The types of certificate names that may be the user.
const (
	sanEmail = "email"
	sanDNS   = "dns"
	sanURI   = "uri"
)

// sanTypes lists all of them. Constant.
var sanTypes = []string{sanEmail, sanDNS, sanURI}

var (
	errNoCertificate = errors.New("no verified client certificate")
	errNotOneSAN     = errors.New("certificate does not have exactly one name of the configured type")
	errNotAcctURI    = errors.New("URI in the certificate is not an acct: URI")
)

// hasVerifiedCertificate reports whether the client has sent a certificate that was verified.
func (c *Client) hasVerifiedCertificate() bool {
	return c.TLS != nil && len(c.TLS.VerifiedChains) > 0 && len(c.TLS.VerifiedChains[0]) > 0
}

// acceptCertificate takes the user from the client's certificate (RFC 4422, appendix A), which
// the handshake has verified.
func (e *Exchange) acceptCertificate(authzid string) error {
	if !e.client.hasVerifiedCertificate() {
		return errNoCertificate
	}
	leaf := e.client.TLS.VerifiedChains[0][0]
	e.presented = PresentedLogin{RawName: authzid, Secret: identity.NewSecret(string(leaf.Raw))}
	name, err := findSAN(leaf, e.auth.certificateName)
	if err != nil {
		return err
	}
	if authzid == "" {
		e.presented.RawName = name
	}
	user, err := e.presented.setName(e.auth.names.Strict(), name, "")
	if err != nil {
		return err
	}
	e.login = Login{User: user, Mechanism: e.mechanism, Client: e.client, proof: &proof{user: user, method: External}}
	return e.auth.checkAuthzID(user, authzid)
}

// findSAN returns the one name of a type in a certificate. A missing or ambiguous name is an
// error: neither the common name nor another type replaces it.
func findSAN(leaf *x509.Certificate, sanType string) (string, error) {
	var names []string
	switch sanType {
	case sanEmail:
		names = leaf.EmailAddresses
	case sanDNS:
		names = leaf.DNSNames
	case sanURI:
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
	}
	if len(names) != 1 || names[0] == "" {
		return "", errNotOneSAN
	}
	if sanType != sanURI {
		return names[0], nil
	}
	name, ok := strings.CutPrefix(names[0], "acct:") // RFC 7565: acct:alice@example.org
	if !ok {
		return "", errNotAcctURI
	}
	return name, nil
}
