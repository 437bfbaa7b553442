package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strings"
)

// nameTable chooses a certificate by the name a client asks for (SNI). It is
// built once per generation from the certificates alone, so that names clients
// invent leave nothing behind.
type nameTable struct {
	exact    map[string][]*tls.Certificate // mail.example.org
	wildcard map[string][]*tls.Certificate // example.org, for *.example.org
	first    *tls.Certificate
}

func newNameTable(pairs []*pair) *nameTable {
	t := &nameTable{
		exact:    make(map[string][]*tls.Certificate),
		wildcard: make(map[string][]*tls.Certificate),
		first:    pairs[0].cert,
	}
	for _, p := range pairs {
		names := p.cert.Leaf.DNSNames
		if len(names) == 0 && len(p.cert.Leaf.IPAddresses) == 0 {
			names = []string{p.cert.Leaf.Subject.CommonName} // clients decide whether that is enough
		}
		for _, name := range names {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if parent, ok := strings.CutPrefix(name, "*."); ok {
				t.wildcard[parent] = append(t.wildcard[parent], p.cert)
			} else {
				t.exact[name] = append(t.exact[name], p.cert)
			}
		}
	}
	return t
}

// choose finds the certificate: the exact name, then the wildcard over
// its first label (RFC 6125 §6.4.3), then the first certificate.
func (t *nameTable) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(hello.ServerName) // allocates only when there is a capital
	if found := t.exact[name]; len(found) > 0 {
		return supported(found, hello), nil
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		if found := t.wildcard[parent]; len(found) > 0 {
			return supported(found, hello), nil
		}
	}
	return t.first, nil
}

// supported picks, where a name has an ECDSA and an RSA certificate, the first
// one the client can use.
func supported(certs []*tls.Certificate, hello *tls.ClientHelloInfo) *tls.Certificate {
	if len(certs) > 1 {
		for _, c := range certs {
			if hello.SupportsCertificate(c) == nil {
				return c
			}
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
	return t.choose(hello)
}

// note is tls.Config.GetConfigForClient: it changes nothing. What choose answers
// to this hello, it answers to the same hello later.
func (t *nameTable) note(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if err := admitted(hello); err != nil {
		return nil, err
	}
	if leaf, ok := hello.Context().Value(noting{}).(**x509.Certificate); ok {
		cert, err := t.choose(hello)
		if err != nil {
			return nil, err
		}
		*leaf = cert.Leaf
	}
	return nil, nil
}
