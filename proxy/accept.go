package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/proxy/relay"
	"imapgate/tlsconf"
)

// proxyTimeout bounds the wait for the whole PROXY header. The specification asks for at
// least three seconds.
const proxyTimeout = 3 * time.Second

// acceptClient prepares a connection for its greeting. It refuses one without a slot or while
// too many handshakes wait, reads the PROXY header where the peer must send one, checks the
// limits of the address, and starts implicit TLS.
func (c *connection) acceptClient() error {
	if c.overLimit {
		return &relay.CloseError{Reason: event.TooManyConnections, Bye: "[UNAVAILABLE] Too many connections."}
	}
	if c.listener.TLS != event.NoTLS {
		if err := c.server.handshakes.refuseIfOverloaded(); err != nil {
			return &relay.CloseError{Reason: event.Overload, Bye: "[UNAVAILABLE] Too many connections.", Err: err}
		}
	}
	if containsPeer(c.listener.balancers, c.client.Record.Peer) {
		if err := c.acceptProxyHeader(); err != nil {
			return &relay.CloseError{Reason: event.BadProxyHeader, Err: err}
		}
	}
	if err := c.updateLimits(); err != nil {
		return err
	}
	c.conn.SetDeadline(c.client.Deadline)
	if c.listener.TLS == event.ImplicitTLS {
		return c.upgradeTLS()
	}
	return nil
}

// containsPeer reports whether one of the networks contains the peer's address.
func containsPeer(networks []netip.Prefix, peer netip.AddrPort) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(peer.Addr()) })
}

// limitAddr returns the address that limits apply to, or the zero Addr while it is unknown.
// The address of a trusted peer is not counted, because it stands for many clients, unless
// the peer is the client itself.
func (c *connection) limitAddr() netip.Addr {
	if c.client.Record.Addr.IsValid() {
		return c.client.Record.Addr.Addr()
	}
	if c.preauth.peerIsClient {
		return c.client.Record.Peer.Addr()
	}
	if containsPeer(c.listener.balancers, c.client.Record.Peer) || containsPeer(c.listener.TrustedNetworks, c.client.Record.Peer) {
		return netip.Addr{}
	}
	return c.client.Record.Peer.Addr()
}

// updateLimits counts the connection for the client's address as now known. The error
// is the *relay.CloseError of a client that is over a limit or banned.
func (c *connection) updateLimits() (err error) {
	if c.client.Limits == nil {
		c.client.Limits, err = c.server.deps.Limits.Open(c.listener.Name, c.limitAddr())
	} else {
		err = c.client.Limits.SetAddr(c.limitAddr())
	}
	if err == nil {
		return nil
	}
	c.server.logins.RecordLimit(&c.client, err, identity.User{})
	return &relay.CloseError{Reason: event.TooManyConnections, Bye: "[UNAVAILABLE] Too many connections.", Err: err}
}

// acceptProxyHeader reads the client's address from the load balancer's PROXY header. LOCAL
// and UNKNOWN keep the peer's address. Bytes after the header are kept.
func (c *connection) acceptProxyHeader() error {
	c.conn.SetDeadline(c.acceptedAt.Add(proxyTimeout))
	r := bufio.NewReaderSize(c.socket, maxProxyHeader)
	header, err := readProxyHeader(r)
	if err != nil {
		return err
	}
	// A second header would come from the client and be taken for the balancer's.
	excess, _ := r.Peek(r.Buffered())
	if bytes.HasSuffix(excess, []byte("\n")) && !bytes.HasSuffix(excess, []byte("\r\n")) { // nothing may follow it: see imap.Reader
		var following [1]byte
		n, _ := parking.ReadAvailable(c.socket, following[:])
		excess = append(excess, following[:n]...)
	}
	c.socket.Unread(excess)
	c.proxyLocal = header.Command.IsLocal() || header.TransportProtocol == proxyproto.UNSPEC
	if src, ok := header.SourceAddr.(*net.TCPAddr); ok && header.Command == proxyproto.PROXY {
		c.proxiedAddr = addrPort(src)
		c.proxyInfo = &auth.ProxyHeader{Client: c.proxiedAddr, Local: addrPort(header.DestinationAddr)}
		c.client.Record.Addr = c.proxiedAddr
	}
	return nil
}

// upgradeTLS starts TLS. The handshake's deadline is absolute and never later than that of
// the login.
func (c *connection) upgradeTLS() error {
	cfg := c.server.deps.TLS.Config()
	start := time.Now()
	deadline := start.Add(c.server.cfg.TLSHandshakeTimeout)
	if deadline.After(c.client.Deadline) {
		deadline = c.client.Deadline
	}
	c.conn.SetDeadline(deadline)
	err := c.conn.Upgrade(func(nc net.Conn) net.Conn {
		c.tls = tls.Server(nc, cfg)
		return c.tls
	})
	if err == nil {
		slot := handshakeSlot{limiter: c.server.handshakes, socket: c.socket}
		defer slot.release()
		err = c.tls.HandshakeContext(tlsconf.WithHelloHook(tlsconf.WithServedCertificate(&c.serverCert), slot.acquire))
	}
	result, reason := handshakeOutcome(c.tls, err)
	c.server.deps.Metrics.CountHandshake(result)
	if err != nil {
		return &relay.CloseError{Reason: reason, Err: err}
	}
	state := c.tls.ConnectionState()
	c.client.Record.TLSVersion, c.client.Record.Cipher = state.Version, state.CipherSuite
	c.client.Record.ServerName, c.client.Record.ALPN = state.ServerName, state.NegotiatedProtocol
	c.conn.SetDeadline(c.client.Deadline)
	return nil
}

// handshakeOutcome returns the result of a handshake for the metrics. If it failed with err,
// reason is why the connection ends.
func handshakeOutcome(c *tls.Conn, err error) (result event.Result, reason event.Reason) {
	switch {
	case err == nil && c.ConnectionState().DidResume:
		return event.ResultResumed, ""
	case err == nil:
		return event.ResultOK, ""
	case errors.Is(err, imap.ErrInjected):
		return event.ResultFailed, event.StartTLSInjection
	case errors.Is(err, errOverloaded):
		return event.ResultOverload, event.Overload
	case isTimeout(err):
		return event.ResultTimeout, event.HandshakeTimeout
	case isALPNMismatch(err):
		return event.ResultALPN, event.WrongALPN
	case isClosed(err):
		return event.ResultCanceled, event.HandshakeFailed
	}
	return event.ResultFailed, event.HandshakeFailed
}

// isALPNMismatch recognizes, by its text, crypto/tls's error for a client that asks for
// other protocols. The error has no type of its own.
func isALPNMismatch(err error) bool {
	return strings.Contains(err.Error(), "client requested unsupported application protocols")
}
