package auth

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/xdg-go/scram"
)

// binding ties an exchange to the TLS connection below it; the type is the
// client's choice. The second result is false for a type that this connection
// cannot serve.
func (c *Client) binding(kind string) (scram.ChannelBinding, bool) {
	switch scram.ChannelBindingType(kind) {
	case scram.ChannelBindingTLSExporter:
		return c.exporter()
	case scram.ChannelBindingTLSServerEndpoint:
		return c.endpoint()
	}
	return scram.ChannelBinding{}, false // tls-unique does not exist in TLS 1.3, and is broken below
}

// anyBinding is for a client that uses none, to notice one that was told of none.
func (c *Client) anyBinding() (scram.ChannelBinding, bool) {
	if b, ok := c.exporter(); ok {
		return b, true
	}
	return c.endpoint()
}

// bindable says whether there is any binding to be had.
func (c *Client) bindable() bool {
	_, ok := c.anyBinding()
	return ok
}

// exporter is RFC 9266. crypto/tls refuses it where it would not be unique: in
// TLS 1.2 without the extended master secret.
func (c *Client) exporter() (scram.ChannelBinding, bool) {
	if c.TLS == nil {
		return scram.ChannelBinding{}, false
	}
	b, err := scram.NewTLSExporterBinding(c.TLS)
	return b, err == nil
}

// endpoint is RFC 5929 §4.1, on the certificate that was served. The library
// looks for it among the peer's, as a client would; the hash is the one that the
// certificate's signature names, and where that names none (Ed25519) there is no
// such binding.
func (c *Client) endpoint() (scram.ChannelBinding, bool) {
	if c.TLS == nil || c.Served == nil {
		return scram.ChannelBinding{}, false
	}
	b, err := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.Served}})
	return b, err == nil
}
