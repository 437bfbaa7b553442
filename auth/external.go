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

// sanKinds are all of them. Constant.
var sanKinds = []string{sanEmail, sanDNS, sanURI}

var (
	errNoCertificate = errors.New("no certificate of the client was verified")
	errOneName       = errors.New("certificate has not exactly one name of the kind that is the user")
	errAcct          = errors.New("URI in the certificate is no acct: URI")
)

// certified says whether the client has shown a certificate that was verified.
func (c *Client) certified() bool {
	return c.TLS != nil && len(c.TLS.VerifiedChains) > 0 && len(c.TLS.VerifiedChains[0]) > 0
}

// external takes the word of whoever signed the client's certificate
// (RFC 4422, appendix A). The handshake has verified it.
func (e *Exchange) external(authzid string) error {
	if !e.client.certified() {
		return errNoCertificate
	}
	leaf := e.client.TLS.VerifiedChains[0][0]
	e.tried = Tried{Name: authzid, Secret: identity.NewSecret(string(leaf.Raw))}
	name, err := sanOf(leaf, e.auth.external)
	if err != nil {
		return err
	}
	if authzid == "" {
		e.tried.Name = name
	}
	user, err := e.tried.name(e.auth.names.Asserted(), name, "")
	if err != nil {
		return err
	}
	e.login = Login{User: user, Mechanism: e.mechanism, Client: e.client, proof: &proof{user: user, method: External}}
	return e.auth.actsFor(user, authzid)
}

// sanOf is the one name of a kind in a certificate. There is no second choice:
// a name that is missing, or is there twice, is nobody's, and neither the common
// name nor another kind stands in for it.
func sanOf(leaf *x509.Certificate, kind string) (string, error) {
	var names []string
	switch kind {
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
		return "", errOneName
	}
	if kind != sanURI {
		return names[0], nil
	}
	name, ok := strings.CutPrefix(names[0], "acct:") // RFC 7565: acct:alice@example.org
	if !ok {
		return "", errAcct
	}
	return name, nil
}
