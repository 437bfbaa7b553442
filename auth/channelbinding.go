package auth

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/xdg-go/scram"
)

// channelBinding ties an exchange to the TLS connection below it; the type is the
// client's choice. The second result is false for a type that this connection
// cannot serve.
func (c *Client) channelBinding(bindingType string) (scram.ChannelBinding, bool) {
	switch scram.ChannelBindingType(bindingType) {
	case scram.ChannelBindingTLSExporter:
		return c.exporterBinding()
	case scram.ChannelBindingTLSServerEndpoint:
		return c.endpointBinding()
	}
	return scram.ChannelBinding{}, false // tls-unique does not exist in TLS 1.3, and is broken below
}

// preferredBinding is for a client that uses none, to notice one that was told of none.
func (c *Client) preferredBinding() (scram.ChannelBinding, bool) {
	if b, ok := c.exporterBinding(); ok {
		return b, true
	}
	return c.endpointBinding()
}

// canBind says whether there is any binding to be had.
func (c *Client) canBind() bool {
	_, ok := c.preferredBinding()
	return ok
}

// exporterBinding is RFC 9266. crypto/tls refuses it where it would not be unique: in
// TLS 1.2 without the extended master secret.
func (c *Client) exporterBinding() (scram.ChannelBinding, bool) {
	if c.TLS == nil {
		return scram.ChannelBinding{}, false
	}
	b, err := scram.NewTLSExporterBinding(c.TLS)
	return b, err == nil
}

// endpointBinding is RFC 5929 §4.1, on the certificate that was served. The library
// looks for it among the peer's, as a client would; the hash is the one that the
// certificate's signature names, and where that names none (Ed25519) there is no
// such binding.
func (c *Client) endpointBinding() (scram.ChannelBinding, bool) {
	if c.TLS == nil || c.ServedCertificate == nil {
		return scram.ChannelBinding{}, false
	}
	b, err := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.ServedCertificate}})
	return b, err == nil
}
