package auth

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/xdg-go/scram"
)

// channelBinding binds an exchange to the TLS connection below it. The client chooses the type.
// The second result is false for a type that this connection does not support.
func (c *Client) channelBinding(bindingType string) (scram.ChannelBinding, bool) {
	switch scram.ChannelBindingType(bindingType) {
	case scram.ChannelBindingTLSExporter:
		return c.exporterBinding()
	case scram.ChannelBindingTLSServerEndpoint:
		return c.endpointBinding()
	}
	return scram.ChannelBinding{}, false // tls-unique does not exist in TLS 1.3 and is broken in older versions
}

// preferredBinding returns the binding for a client that does not use one, to detect an
// attacker that removed the -PLUS mechanism from the server's list.
func (c *Client) preferredBinding() (scram.ChannelBinding, bool) {
	if b, ok := c.exporterBinding(); ok {
		return b, true
	}
	return c.endpointBinding()
}

// canBind reports whether the connection supports any channel binding.
func (c *Client) canBind() bool {
	_, ok := c.preferredBinding()
	return ok
}

// exporterBinding returns tls-exporter (RFC 9266). crypto/tls refuses it where it would not be
// unique: in TLS 1.2 without the extended master secret.
func (c *Client) exporterBinding() (scram.ChannelBinding, bool) {
	if c.TLS == nil {
		return scram.ChannelBinding{}, false
	}
	b, err := scram.NewTLSExporterBinding(c.TLS)
	return b, err == nil
}

// endpointBinding returns tls-server-end-point (RFC 5929 §4.1) of the served certificate. The
// library reads the certificate from the peer's, as a client would. The hash is the one that
// the certificate's signature uses; Ed25519 names none and has no such binding.
func (c *Client) endpointBinding() (scram.ChannelBinding, bool) {
	if c.TLS == nil || c.ServedCertificate == nil {
		return scram.ChannelBinding{}, false
	}
	b, err := scram.NewTLSServerEndpointBinding(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.ServedCertificate}})
	return b, err == nil
}
