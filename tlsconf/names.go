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

func newNameTable(pairs []*pair) *nameTable {
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
		for _, c := range t.named(name) {
			if !slices.Contains(t.fallback, c) {
				t.fallback = append(t.fallback, c)
			}
		}
	}
	return t
}

// named are the certificates for a name in lower case: those for itself, then the
// wildcards over its first label (RFC 6125 §6.4.3), which may be the name itself.
func (t *nameTable) named(name string) []*tls.Certificate {
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

// choose finds the certificate: of those for the name, and for any other name, and
// without one, of those for the names of the first, the first that the client can
// use. A client that can use none gets the first of them, and its handshake fails.
func (t *nameTable) choose(hello *tls.ClientHelloInfo) *tls.Certificate {
	found := t.named(strings.ToLower(hello.ServerName)) // allocates only when there is a capital
	if len(found) == 0 {
		found = t.fallback
	}
	return usable(found, hello)
}

// usable is the first certificate that the client can use, or else the first: a
// name may have one with an ECDSA key and one with an RSA key.
func usable(certs []*tls.Certificate, hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(certs) == 1 {
		return certs[0]
	}
	able := *hello
	able.ServerName = "" // the name is looked at already, and may be none of theirs
	for _, c := range certs {
		if able.SupportsCertificate(c) == nil {
			return c
		}
	}
	return certs[0]
}

// noting is the context key under which Noting puts where to write.
type noting struct{}

// Noting is a context for one server handshake; when that has succeeded, leaf
// is the certificate the client knows the server by. It is never done.
func Noting(leaf **x509.Certificate) context.Context {
	return context.WithValue(context.Background(), noting{}, leaf)
}

// admitting is the context key under which Admitting puts whom to ask.
type admitting struct{}

// Admitting adds to the context of a server handshake who lets it go on. That is
// asked when the client's hello has come whole and nothing dear was computed yet,
// and may wait; an error ends the handshake, which returns it. It is asked again
// before a signature, where the client had to say hello twice in between.
func Admitting(ctx context.Context, admit func() error) context.Context {
	return context.WithValue(ctx, admitting{}, admit)
}

func admitted(hello *tls.ClientHelloInfo) error {
	ctx := hello.Context()
	if ctx == nil { // a question outside of a handshake
		return nil
	}
	if admit, ok := ctx.Value(admitting{}).(func() error); ok {
		return admit()
	}
	return nil
}

// certificate is tls.Config.GetCertificate.
func (t *nameTable) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if err := admitted(hello); err != nil {
		return nil, err
	}
	return t.choose(hello), nil
}

// note is tls.Config.GetConfigForClient: it changes nothing. What choose answers
// to this hello, it answers to the same hello later.
func (t *nameTable) note(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if err := admitted(hello); err != nil {
		return nil, err
	}
	if leaf, ok := hello.Context().Value(noting{}).(**x509.Certificate); ok {
		*leaf = t.choose(hello).Leaf
	}
	return nil, nil
}
