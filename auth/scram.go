package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/xdg-go/scram"
	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// maxScramMessage bounds one message of a client, and with it its nonce and all that is
// computed of them. A name is 320 bytes, a binding 64, a proof 32.
const maxScramMessage = 2 << 10

// A challenge comes no sooner than this after the client's first message, and up
// to half as much later: what a user's keys are found in takes microseconds when
// they are remembered and a trip to Redis when they are not, and nobody is
// remembered for as long as a user is. It is longer than such a trip takes, and
// than routing waits for a newer answer than the one it has.
const defaultMinChallengeTime = 50 * time.Millisecond

// Constant: the library's errors quote channel bindings, and are not kept.
var (
	errScramMessage = errors.New("message has not the form of the mechanism, or does not fit the connection")
	errScramBinding = errors.New("channel binding is not that of this connection or mechanism")
	errScramProof   = errors.New("proof is wrong, or nobody here knows the user")
)

// scramServer is SCRAM-SHA-256, with and without -PLUS (RFC 5802, RFC 7677). A
// client that does not know the password learns nothing of whether there is such
// a user: it gets a salt, and what it proves is wrong.
type scramServer struct {
	// Set once.
	exchange *Exchange
	isPlus   bool
	// Owned by the session.
	conversation *scram.ServerConversation // nil before the first message
	proof        proof
	sourceErr    error // of the source that was asked
	denyErr      error // ErrDenied, wrapped: no proof will do
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

// delayChallenge waits until a challenge may be given that was asked for at began.
func (a *Authenticator) delayChallenge(ctx context.Context, start time.Time) error {
	timer := time.NewTimer(time.Until(start.Add(a.minChallengeTime + rand.N(a.minChallengeTime/2+1))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("hold a challenge back: %w: %w", ErrUnavailable, ctx.Err())
	}
}

// handleFirst takes who the client is and answers with salt and iterations.
func (s *scramServer) handleFirst(ctx context.Context, message string) ([]byte, error) {
	withoutNonce, _, _ := strings.Cut(message, ",r=") // without the nonce
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

// newConversation begins the conversation with the binding that the first message names.
// RFC 5802 §6: "p" belongs to -PLUS alone; "y" is a client that can bind and was
// not told that we can, so where we told it somebody in between has lied.
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

// handleFinal takes the client's proof. A wrong one is no error: the exchange is over,
// there is a user whose password was guessed at, and Authenticate says no. Our
// own proof is given with it, for a client whose login is accepted.
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

// lookUpKeys is the library's question for a user's keys. Users without any have mock
// ones, which are made in any case, so that both take as long.
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
		if errors.Is(err, ErrDenied) { // a challenge that never comes would tell that there is such a user
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
		break // the first who knows the user decides, and this one cannot be proven so
	}
	return keys, nil
}

// mockKeys is the keys of a user who has none: nobody can prove to know them. Salt
// and iterations look like those of others, and stay the same whenever and at
// whichever gateway somebody asks, as PostgreSQL does it: so the iterations are
// the configuration's, not those of whoever was asked about.
func (a *Authenticator) mockKeys(name string) scram.StoredCredentials {
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(a.deriveMockKey("salt", name)[:scramSaltSize]), Iters: a.scramIterations},
		StoredKey:  a.deriveMockKey("stored key", name),
		ServerKey:  a.deriveMockKey("server key", name),
	}
}

// warnIterations tells the operator, once in a while, of a user whose iterations
// are not those of users who do not exist: who asks can tell the two apart.
func (a *Authenticator) warnIterations(user identity.User, params hashParams) {
	if params.costs[0] == a.scramIterations {
		return
	}
	a.iterationsWarning.Do(func() {
		a.log.Warn("stored SCRAM password has other iterations than auth.scram_iterations, which tells that the user exists",
			zap.Stringer("user", user), zap.Int("iterations", params.costs[0]), zap.Int("configured", a.scramIterations))
	})
}

// deriveMockKey is HMAC(secret, what NUL name); no name has a NUL.
func (a *Authenticator) deriveMockKey(label, name string) []byte {
	return hmacSHA256([]byte(a.scramSecret.Reveal()), label+"\x00"+name)
}
