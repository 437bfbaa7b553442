package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
)

// nameTable chooses a certificate by the name a client asks for (SNI). It is
// built once per generation from the certificates alone, so that names clients
// invent leave nothing behind.
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

// lookUp are the certificates for a name in lower case: those for itself, then the
// wildcards over its first label (RFC 6125 §6.4.3), which may be the name itself.
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

// certificateNames are the names that a certificate is for, in lower case. Without
// any it is the common name, and clients decide whether that is enough.
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

// selectCertificate finds the certificate: of those for the name, and for any other name, and
// without one, of those for the names of the first, the first that the client can
// use. A client that can use none gets the first of them, and its handshake fails.
func (t *nameTable) selectCertificate(hello *tls.ClientHelloInfo) *tls.Certificate {
	certs := t.lookUp(strings.ToLower(hello.ServerName)) // allocates only when there is a capital
	if len(certs) == 0 {
		certs = t.fallback
	}
	return firstSupported(certs, hello)
}

// firstSupported is the first certificate that the client can use, or else the first: a
// name may have one with an ECDSA key and one with an RSA key.
func firstSupported(certs []*tls.Certificate, hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(certs) == 1 {
		return certs[0]
	}
	unnamed := *hello
	unnamed.ServerName = "" // the name is looked at already, and may be none of theirs
	for _, c := range certs {
		if unnamed.SupportsCertificate(c) == nil {
			return c
		}
	}
	return certs[0]
}

// servedKey is the context key under which Noting puts where to write.
type servedKey struct{}

// WithServedCertificate is a context for one server handshake; when that has succeeded, leaf
// is the certificate the client knows the server by. It is never done.
func WithServedCertificate(leaf **x509.Certificate) context.Context {
	return context.WithValue(context.Background(), servedKey{}, leaf)
}

// helloHookKey is the context key under which Admitting puts whom to ask.
type helloHookKey struct{}

// WithHelloHook adds to the context of a server handshake who lets it go on. That is
// asked when the client's hello has come whole and nothing dear was computed yet,
// and may wait; an error ends the handshake, which returns it. It is asked again
// before a signature, where the client had to say hello twice in between.
func WithHelloHook(ctx context.Context, hook func() error) context.Context {
	return context.WithValue(ctx, helloHookKey{}, hook)
}

func runHelloHook(hello *tls.ClientHelloInfo) error {
	ctx := hello.Context()
	if ctx == nil { // a question outside of a handshake
		return nil
	}
	if hook, ok := ctx.Value(helloHookKey{}).(func() error); ok {
		return hook()
	}
	return nil
}

// getCertificate is tls.Config.GetCertificate.
func (t *nameTable) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if err := runHelloHook(hello); err != nil {
		return nil, err
	}
	return t.selectCertificate(hello), nil
}

// recordServed is tls.Config.GetConfigForClient: it changes nothing. What choose answers
// to this hello, it answers to the same hello later.
func (t *nameTable) recordServed(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if err := runHelloHook(hello); err != nil {
		return nil, err
	}
	if leaf, ok := hello.Context().Value(servedKey{}).(**x509.Certificate); ok {
		*leaf = t.selectCertificate(hello).Leaf
	}
	return nil, nil
}
