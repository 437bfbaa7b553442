package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
)

// nameTable selects a certificate by the name that a client requests (SNI). It is built once
// per generation from the certificates alone, so that names made up by clients use no memory.
type nameTable struct {
	exact    map[string][]*tls.Certificate // mail.example.org
	wildcard map[string][]*tls.Certificate // example.org, for *.example.org
	fallback []*tls.Certificate            // the first certificate, and all others for one of its names
}

func newNameTable(pairs []*keyPair) *nameTable {
	t := &nameTable{
		exact:    make(map[string][]*tls.Certificate),
		wildcard: make(map[string][]*tls.Certificate),
	}
	for _, p := range pairs {
		for _, name := range certificateNames(p.cert) {
			if parent, ok := strings.CutPrefix(name, "*."); ok {
				t.wildcard[parent] = append(t.wildcard[parent], p.cert)
			} else {
				t.exact[name] = append(t.exact[name], p.cert)
			}
		}
	}
	t.fallback = []*tls.Certificate{pairs[0].cert}
	for _, name := range certificateNames(pairs[0].cert) {
		for _, c := range t.lookUp(name) {
			if !slices.Contains(t.fallback, c) {
				t.fallback = append(t.fallback, c)
			}
		}
	}
	return t
}

// lookUp returns the certificates for a name in lower case: exact ones, then wildcards for its
// first label (RFC 6125 §6.4.3). The name itself may be a wildcard.
func (t *nameTable) lookUp(name string) []*tls.Certificate {
	label, parent, ok := strings.Cut(name, ".")
	if !ok || len(t.wildcard[parent]) == 0 {
		return t.exact[name]
	}
	if label == "*" {
		return t.wildcard[parent]
	}
	return slices.Concat(t.exact[name], t.wildcard[parent])
}

// certificateNames returns the DNS names of a certificate in lower case. Without any it returns
// the IP addresses, and without those the common name, which clients may not accept.
func certificateNames(cert *tls.Certificate) []string {
	names := cert.Leaf.DNSNames
	if len(names) == 0 {
		for _, ip := range cert.Leaf.IPAddresses {
			names = append(names, ip.String())
		}
	}
	if len(names) == 0 {
		names = []string{cert.Leaf.Subject.CommonName}
	}
	lower := make([]string, len(names))
	for i, name := range names {
		lower[i] = strings.ToLower(strings.TrimSuffix(name, "."))
	}
	return lower
}

// selectCertificate returns the first certificate for the requested name that the client
// supports. A name may have one with an ECDSA key and one with an RSA key. For an unknown or
// missing name it uses fallback. If the client supports none, the handshake with the first
// fails.
func (t *nameTable) selectCertificate(hello *tls.ClientHelloInfo) *tls.Certificate {
	certs := t.lookUp(strings.ToLower(hello.ServerName)) // allocates only if there is a capital
	if len(certs) == 0 {
		certs = t.fallback
	}
	if len(certs) == 1 {
		return certs[0]
	}
	unnamed := *hello
	unnamed.ServerName = "" // lookUp has matched the name; fallback may not have it
	for _, c := range certs {
		if unnamed.SupportsCertificate(c) == nil {
			return c
		}
	}
	return certs[0]
}

// servedKey is the context key of WithServedCertificate.
type servedKey struct{}

// WithServedCertificate returns a context for one server handshake. After its success, leaf is
// the certificate that identifies the server to the client. The context is never done.
func WithServedCertificate(leaf **x509.Certificate) context.Context {
	return context.WithValue(context.Background(), servedKey{}, leaf)
}

// helloHookKey is the context key of WithHelloHook.
type helloHookKey struct{}

// WithHelloHook adds a hook to the context of a server handshake. crypto/tls calls it when the
// client's hello is complete and nothing expensive has been computed. The hook may block; its
// error ends the handshake, which returns it. After a hello retry it is called again before the
// signature.
func WithHelloHook(ctx context.Context, hook func() error) context.Context {
	return context.WithValue(ctx, helloHookKey{}, hook)
}

func runHelloHook(hello *tls.ClientHelloInfo) error {
	ctx := hello.Context()
	if ctx == nil { // called outside of a handshake
		return nil
	}
	if hook, ok := ctx.Value(helloHookKey{}).(func() error); ok {
		return hook()
	}
	return nil
}

// getCertificate implements tls.Config.GetCertificate.
func (t *nameTable) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if err := runHelloHook(hello); err != nil {
		return nil, err
	}
	return t.selectCertificate(hello), nil
}

// recordServed implements tls.Config.GetConfigForClient and changes no configuration.
// selectCertificate returns the same certificate later for the same hello.
func (t *nameTable) recordServed(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if err := runHelloHook(hello); err != nil {
		return nil, err
	}
	if leaf, ok := hello.Context().Value(servedKey{}).(**x509.Certificate); ok {
		*leaf = t.selectCertificate(hello).Leaf
	}
	return nil, nil
}
