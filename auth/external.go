package auth

import (
	"crypto/x509"
	"errors"
	"strings"

	"imapgate/internal/identity"
)

// The kinds of name in a certificate that may be the user.
const (
	sanEmail = "email"
	sanDNS   = "dns"
	sanURI   = "uri"
)

// sanTypes are all of them. Constant.
var sanTypes = []string{sanEmail, sanDNS, sanURI}

var (
	errNoCertificate = errors.New("no certificate of the client was verified")
	errNotOneSAN     = errors.New("certificate has not exactly one name of the kind that is the user")
	errNotAcctURI    = errors.New("URI in the certificate is no acct: URI")
)

// hasVerifiedCertificate says whether the client has shown a certificate that was verified.
func (c *Client) hasVerifiedCertificate() bool {
	return c.TLS != nil && len(c.TLS.VerifiedChains) > 0 && len(c.TLS.VerifiedChains[0]) > 0
}

// acceptCertificate takes the word of whoever signed the client's certificate
// (RFC 4422, appendix A). The handshake has verified it.
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

// findSAN is the one name of a kind in a certificate. There is no second choice:
// a name that is missing, or is there twice, is nobody's, and neither the common
// name nor another kind stands in for it.
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
