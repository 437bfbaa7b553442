package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
	"imapgate/internal/quiet"
	"imapgate/tlsconf"
)

// proxyTimeout is for the whole PROXY header; the protocol's text asks for at
// least three seconds.
const proxyTimeout = 3 * time.Second

// arrive brings a connection to its greeting: a place for it, the PROXY header
// where the peer must send one, its place among those of its address, implicit TLS.
func (s *session) arrive() error {
	if s.refused {
		return &ending{audit.TooMany, "[UNAVAILABLE] Too many connections.", nil}
	}
	if s.listener.TLS != NoTLS && s.server.turns.hopeless() {
		return &ending{audit.Overload, "[UNAVAILABLE] Too many connections.", errBusy}
	}
	if trusts(s.listener.ProxyTrusted, s.who.Peer) {
		if err := s.introduced(); err != nil {
			return &ending{audit.BadProxyHeader, "", err}
		}
	}
	if err := s.visitBegins(); err != nil {
		return err
	}
	s.conn.Limit(s.deadline)
	if s.listener.TLS == ImplicitTLS {
		return s.handshake()
	}
	return nil
}

// trusts says whether a peer's TCP address is in one of the networks.
func trusts(networks []netip.Prefix, peer netip.AddrPort) bool {
	for _, n := range networks {
		if n.Contains(peer.Addr()) {
			return true
		}
	}
	return false
}

// introduced learns the client's address from the load balancer in front.
// LOCAL and UNKNOWN keep the peer's. Bytes behind the header are kept.
func (s *session) introduced() error {
	s.conn.Limit(s.began.Add(proxyTimeout))
	r := bufio.NewReaderSize(s.socket, maxProxyHeader)
	header, err := readProxyHeader(r)
	if err != nil {
		return err
	}
	// A second header would be a client's, taken for the balancer's.
	rest, _ := r.Peek(r.Buffered())
	if bytes.HasSuffix(rest, []byte("\n")) && !bytes.HasSuffix(rest, []byte("\r\n")) { // nothing may stand behind it: see imap.Reader
		var next [1]byte
		n, _ := quiet.ReadArrived(s.socket, next[:])
		rest = append(rest, next[:n]...)
	}
	s.socket.Unread(rest)
	s.local = header.Command.IsLocal() || header.TransportProtocol == proxyproto.UNSPEC
	if src, ok := header.SourceAddr.(*net.TCPAddr); ok && header.Command == proxyproto.PROXY {
		s.balanced = addrPort(src)
		s.balancer = &auth.Balancer{Client: s.balanced, Local: addrPort(header.DestinationAddr)}
		s.who.Claimed = s.balanced
	}
	return nil
}

// handshake starts TLS. Its deadline is absolute, and never later than that of
// the login.
func (s *session) handshake() error {
	cfg := s.server.rooms.TLS.Config()
	began := time.Now()
	limit := began.Add(s.server.cfg.Handshake)
	if limit.After(s.deadline) {
		limit = s.deadline
	}
	s.conn.Limit(limit)
	err := s.conn.Upgrade(func(nc net.Conn) net.Conn {
		s.tls = tls.Server(nc, cfg)
		return s.tls
	})
	if err == nil {
		turn := turn{turns: s.server.turns, socket: s.socket}
		defer turn.giveBack()
		err = s.tls.HandshakeContext(tlsconf.Admitting(tlsconf.Noting(&s.served), turn.take))
	}
	s.server.rooms.Metrics.HandshakeDone(handshakeResult(s.tls, err))
	if err != nil {
		return &ending{handshakeReason(err), "", err}
	}
	state := s.tls.ConnectionState()
	s.who.TLSVersion, s.who.Cipher = state.Version, state.CipherSuite
	s.who.ServerName, s.who.ALPN = state.ServerName, state.NegotiatedProtocol
	s.conn.Limit(s.deadline)
	return nil
}

func handshakeReason(err error) audit.Reason {
	switch {
	case errors.Is(err, imap.ErrInjected):
		return audit.StartTLSInjection
	case errors.Is(err, errBusy):
		return audit.Overload
	case isTimeout(err):
		return audit.HandshakeTimeout
	case isALPN(err):
		return audit.WrongALPN
	}
	return audit.HandshakeFailed
}

func handshakeResult(c *tls.Conn, err error) string {
	switch {
	case err == nil && c.ConnectionState().DidResume:
		return metrics.Resumed
	case err == nil:
		return metrics.OK
	case errors.Is(err, errBusy):
		return metrics.Overload
	case isTimeout(err):
		return metrics.Timeout
	case isALPN(err):
		return metrics.ALPN
	case isClosed(err):
		return metrics.Canceled
	}
	return metrics.Failed
}

// isALPN knows crypto/tls's word for a client that asked for other protocols;
// there is no type for it.
func isALPN(err error) bool {
	return strings.Contains(err.Error(), "client requested unsupported application protocols")
}
