package auth

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/xdg-go/scram"
	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/sleep"
)

// maxScramMessage bounds one message of a client, and so its nonce and everything derived from
// it. A name has up to 320 bytes, a binding 64, a proof 32.
const maxScramMessage = 2 << 10

// defaultMinChallengeTime is the least time from the client's first message to the challenge; a
// random part of up to half of it is added. A user's keys come from a cache in microseconds, or
// from Redis, and an unknown user is cached for a shorter time than a user. The delay is longer
// than a request to Redis takes, and than routing waits for a newer result than its cached one.
const defaultMinChallengeTime = 50 * time.Millisecond

// Constant texts: the library's errors quote channel bindings and are dropped.
var (
	errScramMessage = errors.New("malformed SCRAM message, or one that does not fit the connection")
	errScramBinding = errors.New("channel binding does not match this connection or mechanism")
	errScramProof   = errors.New("SCRAM proof mismatch or unknown user")
)

// scramServer implements SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677). A client
// that does not know the password cannot find out whether the user exists: it always receives a
// salt, and its proof is wrong.
type scramServer struct {
	// Set once.
	exchange *Exchange
	isPlus   bool
	// Owned by the session.
	conversation *scram.ServerConversation // nil before the first message
	proof        proof
	sourceErr    error // from a password source that could not answer
	denyErr      error // wraps ErrDenied if no proof is to be accepted
}

func (s *scramServer) next(ctx context.Context, response []byte) ([]byte, bool, error) {
	switch {
	case response == nil && s.conversation == nil:
		return []byte{}, false, nil
	case len(response) > maxScramMessage:
		return nil, false, errScramMessage
	case s.conversation == nil:
		start := time.Now()
		challenge, err := s.handleFirst(ctx, string(response))
		if waitErr := s.exchange.auth.delayChallenge(ctx, start); waitErr != nil {
			return nil, false, waitErr
		}
		return challenge, false, err
	}
	return s.handleFinal(string(response))
}

// delayChallenge waits until the challenge to a message received at start may be sent.
func (a *Authenticator) delayChallenge(ctx context.Context, start time.Time) error {
	due := start.Add(a.minChallengeTime + rand.N(a.minChallengeTime/2+1))
	if err := sleep.For(ctx, time.Until(due)); err != nil {
		return fmt.Errorf("delay challenge: %w: %w", ErrUnavailable, err)
	}
	return nil
}

// handleFirst reads the user name and returns a challenge with salt and iterations.
func (s *scramServer) handleFirst(ctx context.Context, message string) ([]byte, error) {
	withoutNonce, _, _ := strings.Cut(message, ",r=")
	s.exchange.presented.Secret = identity.NewSecret(withoutNonce)
	lookup := func(name string) (scram.StoredCredentials, error) { return s.lookUpKeys(ctx, name) }
	server, err := scram.SHA256.NewServer(lookup)
	if err != nil {
		return nil, errScramMessage
	}
	if s.conversation, err = s.newConversation(server, message); err != nil {
		return nil, err
	}
	challenge, err := s.conversation.Step(message)
	if s.sourceErr != nil {
		return nil, s.sourceErr
	}
	if err != nil {
		return nil, errScramMessage
	}
	return []byte(challenge), s.exchange.auth.checkAuthzID(s.proof.user, s.conversation.AuthzID())
}

// newConversation begins a conversation with the binding of the client's first message. RFC
// 5802 §6: "p" belongs to -PLUS alone. "y" means that the client can bind and did not see
// -PLUS; if this server offered it, an attacker has removed it from the list.
func (s *scramServer) newConversation(server *scram.Server, message string) (*scram.ServerConversation, error) {
	e := s.exchange
	flag, _, _ := strings.Cut(message, ",")
	bindingType, binds := strings.CutPrefix(flag, "p=")
	if binds != s.isPlus {
		return nil, errScramBinding
	}
	if s.isPlus {
		b, ok := e.client.channelBinding(bindingType)
		if !ok {
			return nil, errScramBinding
		}
		return server.NewConversationWithChannelBindingRequired(b), nil
	}
	if _, offered := e.auth.findOffered(scramSHA256Plus, e.client); offered {
		b, _ := e.client.preferredBinding()
		return server.NewConversationWithChannelBinding(b), nil
	}
	return server.NewConversation(), nil
}

// handleFinal verifies the client's proof. A wrong one is not an error here: the exchange is
// complete, and Authenticate refuses the login. For an accepted login it also returns the
// server's proof.
func (s *scramServer) handleFinal(message string) ([]byte, bool, error) {
	s.exchange.presented.Secret = identity.Secret{}
	reply, err := s.conversation.Step(message)
	if err != nil || !s.conversation.Valid() || s.proof.method == "" {
		reply = ""
		s.proof.err = cmp.Or(s.denyErr, fmt.Errorf("%w: %w", ErrDenied, errScramProof))
	}
	e := s.exchange
	e.login = Login{User: s.proof.user, Mechanism: e.mechanism, Client: e.client, proof: &s.proof}
	if reply == "" {
		return nil, true, nil
	}
	return []byte(reply), true, nil
}

// lookUpKeys returns a user's keys to the library. Users without keys get mock keys. These are
// computed in any case, so that both take the same time.
func (s *scramServer) lookUpKeys(ctx context.Context, name string) (scram.StoredCredentials, error) {
	a := s.exchange.auth
	s.exchange.presented.RawName = name
	user, err := s.exchange.presented.setName(a.names, name, "")
	if err != nil {
		return a.mockKeys(name), nil
	}
	s.proof.user = user
	keys := a.mockKeys(user.String())
	for _, m := range a.methods {
		source, ok := m.method.(storedPasswords)
		if !ok {
			continue
		}
		hash, err := source.lookUp(ctx, user)
		if errors.Is(err, ErrUnknown) {
			continue
		}
		if errors.Is(err, ErrDenied) { // without a challenge the client would know that the user exists
			s.denyErr = fmt.Errorf("method %s: %w", m.name, err)
			break
		}
		if err != nil {
			s.sourceErr = fmt.Errorf("method %s: %w", m.name, err)
			return scram.StoredCredentials{}, err
		}
		if hash.params.scheme.name == scramSHA256 {
			s.proof.method = m.name
			a.warnIterations(user, hash.params)
			return decodeScram(hash.hash.Reveal())
		}
		break // the first source that has the user decides, and its hash is not for SCRAM
	}
	return keys, nil
}

// mockKeys returns keys for a user who has none; no client can prove that it knows them. As in
// PostgreSQL, salt and iterations look like those of other users and are the same at any time
// and at every gateway. So the iterations are the configured ones.
func (a *Authenticator) mockKeys(name string) scram.StoredCredentials {
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(a.deriveMockKey("salt", name)[:scramSaltSize]), Iters: a.scramIterations},
		StoredKey:  a.deriveMockKey("stored key", name),
		ServerKey:  a.deriveMockKey("server key", name),
	}
}

// warnIterations logs, at most once a minute, a user whose iterations differ from those shown
// for unknown users. A client can tell that such a user exists.
func (a *Authenticator) warnIterations(user identity.User, params hashParams) {
	if params.costs[0] == a.scramIterations {
		return
	}
	a.iterationsWarning.Do(func() {
		a.log.Warn("stored SCRAM password has other iterations than auth.scram_iterations, which shows that the user exists",
			zap.Stringer("user", user), zap.Int("iterations", params.costs[0]), zap.Int("configured", a.scramIterations))
	})
}

// deriveMockKey returns HMAC(secret, label NUL name). No name contains a NUL.
func (a *Authenticator) deriveMockKey(label, name string) []byte {
	return hmacSHA256([]byte(a.scramSecret.Reveal()), label+"\x00"+name)
}

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
