package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-sasl"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"imapgate/internal/identity"
)

var (
	// ErrDenied means that the password is wrong, the user is unknown, or the name or password
	// is not one that an account can have. Callers cannot and must not tell which.
	ErrDenied = errors.New("login denied")
	// ErrUnavailable means that the password could not be verified. The source is down or holds
	// invalid data, or too many verifications are waiting.
	ErrUnavailable = errors.New("login cannot be verified now")
	// ErrTooLong means that the token, or the message with it, exceeds the accepted length. It
	// was not examined and does not count as a guess.
	ErrTooLong = errors.New("token is too long")
	// ErrNoResponse is wrapped together with ErrUnavailable when a service received the
	// password and sent no usable response. Whether the password was right is unknown.
	ErrNoResponse = errors.New("no response to the request")
	// ErrUnknown is what a PasswordLookup returns, bare or wrapped, for a user who has no
	// password in its source. The next method is then asked. The code that connects a lookup to
	// this package translates the source's own error. Every other error of a lookup but
	// ErrDenied becomes ErrUnavailable. Authenticate never returns ErrUnknown.
	ErrUnknown = errors.New("user has no password here")
)

const (
	// maxPassword bounds a password in bytes, and so the time that hashing one takes.
	maxPassword = 1024
	// defaultMaxQueued is how many verifications may wait for a verifier.
	defaultMaxQueued = 64
)

// Config is the configuration of an Authenticator.
type Config struct {
	Settings
	HashSettings
	ListenerMechanisms map[string][]string // subset of Mechanisms for a listener; a listener without an entry has all
	MaxQueued          int                 // verifications that may wait for a verifier; 0 means 64
}

// Authenticator verifies a Login and returns an Identity.
type Authenticator struct {
	// Set once.
	names              identity.Names
	methods            []namedMethod
	file               *passwdFile // also among methods; nil without method File
	verifier           *verifier
	mechanisms         []string            // enabled ones, in order of preference
	listenerMechanisms map[string][]string // as in Config
	scramSecret        identity.Secret
	scramIterations    int           // of PBKDF2, for users without SCRAM keys
	minChallengeTime   time.Duration // least time from a first SCRAM message to its challenge
	certificateName    string
	log                *zap.Logger
	// iterationsWarning has its own lock.
	iterationsWarning rate.Sometimes
}

// SettingError reports an invalid setting: methods, mechanisms or file.path.
type SettingError struct {
	Setting string
	Err     error
}

func (e *SettingError) Error() string { return "auth: " + e.Err.Error() }
func (e *SettingError) Unwrap() error { return e.Err }

// New returns an Authenticator. It reads the passwd-file, so that a gateway does not start with
// a file that a reload would refuse.
func New(cfg Config, sources Sources, log *zap.Logger) (*Authenticator, error) {
	if _, err := cfg.NameRules.Canonicalize("a"); err != nil {
		return nil, errors.New("auth: the default domain is not a valid domain")
	}
	if len(cfg.Methods) == 0 {
		return nil, errors.New("auth: no method")
	}
	if cfg.MaxPasswordHashes < 0 || cfg.MaxQueued < 0 {
		return nil, errors.New("auth: verifiers and queue cannot be negative")
	}
	a := &Authenticator{names: cfg.NameRules, verifier: newVerifier(cfg.MaxPasswordHashes, cmp.Or(cfg.MaxQueued, defaultMaxQueued)),
		listenerMechanisms: cfg.ListenerMechanisms, scramSecret: cfg.SCRAMSecret, scramIterations: cfg.SCRAMIterations, minChallengeTime: defaultMinChallengeTime,
		certificateName: cfg.External.SAN, log: log, iterationsWarning: rate.Sometimes{Interval: time.Minute}}
	for _, name := range cfg.Methods {
		if err := a.addMethod(name, cfg, sources, log); err != nil {
			return nil, err
		}
	}
	if err := a.enableMechanisms(cfg.Mechanisms); err != nil {
		return nil, &SettingError{"mechanisms", err}
	}
	return a, nil
}

// Run reloads the passwd-file whenever it changes, until ctx is done. Without a file it only
// waits. It returns nil.
func (a *Authenticator) Run(ctx context.Context) error {
	if a.file == nil {
		<-ctx.Done()
		return nil
	}
	a.file.watch(ctx)
	return nil
}

// Canonicalize returns the canonical name of a user name as a client or an operator wrote it.
// The error is ErrDenied.
func (a *Authenticator) Canonicalize(raw string) (identity.User, error) {
	u, err := a.names.Canonicalize(raw)
	if err != nil {
		return identity.User{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return u, nil
}

// Authenticate asks the methods in order, or accepts the outcome of a mechanism's proof. The
// error wraps ErrDenied, perhaps in a DelayedDenial, or ErrUnavailable.
//
// While a verification is queued, ctx ends the wait. The hashing itself cannot be interrupted;
// parseStoredHash bounds its length, and the verifier bounds how many run at once.
func (a *Authenticator) Authenticate(ctx context.Context, l Login) (Identity, error) {
	if err := l.validate(); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if l.proof != nil {
		return a.acceptProof(ctx, l)
	}
	for _, m := range a.methods {
		if !m.canVerify(l.credentialType()) {
			continue
		}
		id, err := m.authenticate(ctx, l)
		if errors.Is(err, ErrUnknown) {
			continue
		}
		if err != nil {
			return Identity{}, fmt.Errorf("method %s: %w", m.name, err)
		}
		id.method = m.name
		return id, nil
	}
	if l.credentialType() == tokenCredential {
		return Identity{}, fmt.Errorf("no method verifies tokens: %w", ErrDenied)
	}
	return Identity{}, a.verifyDecoy(ctx, l.Password)
}

// acceptProof returns the identity of a login with a proof. For a certificate's user it also
// asks the authentication server, as nginx does. The server may refuse the user, and returns
// the backend of the mailbox.
func (a *Authenticator) acceptProof(ctx context.Context, l Login) (Identity, error) {
	if l.proof.err != nil {
		return Identity{}, l.proof.err
	}
	id := Identity{user: l.User, method: l.proof.method}
	if l.Mechanism != SASLExternal {
		return id, nil
	}
	for _, m := range a.methods {
		httpServer, ok := m.method.(authServerMethod)
		if !ok {
			continue
		}
		var err error
		if id, err = httpServer.authenticate(ctx, l); err != nil {
			return Identity{}, fmt.Errorf("method %s of a certificate's user: %w", m.name, err)
		}
		id.method = l.proof.method
	}
	return id, nil
}

// verifyDecoy runs a verification that no password can pass, so that an unknown user takes as
// long as a wrong password. It costs what most users of the last source cost. Where costs are
// mixed within one source, users with a rarer cost still differ from unknown names.
func (a *Authenticator) verifyDecoy(ctx context.Context, password identity.Secret) error {
	if _, err := a.verifier.verify(ctx, a.typicalParams().newDecoy(), password); err != nil {
		return err
	}
	return fmt.Errorf("no method knows the user: %w", ErrDenied)
}

// typicalParams returns the parameters of the last source that has any.
func (a *Authenticator) typicalParams() hashParams {
	for _, m := range slices.Backward(a.methods) {
		if s, ok := m.method.(storedPasswords); ok {
			if params := s.typicalParams(); params.scheme != nil {
				return params
			}
		}
	}
	return defaultHashParams()
}

// The names of the SCRAM mechanisms (RFC 7677). The first is also the name of the hash scheme.
const (
	scramSHA256     = "SCRAM-SHA-256"
	scramSHA256Plus = "SCRAM-SHA-256-PLUS"
)

// allMechanisms lists all mechanisms in order of preference. Clients with a choice often take
// the first that they know. Constant.
var allMechanisms = []string{scramSHA256Plus, scramSHA256, sasl.External, sasl.Plain, sasl.Login, OAuthBearer, XOAuth2}

// errAuthzID is constant text: it never quotes the message.
var errAuthzID = errors.New("authorization identity is another user")

// enableMechanisms enables the operator's list, of which a method must be able to verify each.
// Without a list it enables defaultMechanisms.
func (a *Authenticator) enableMechanisms(list []string) error {
	if len(list) == 0 {
		a.mechanisms = a.defaultMechanisms()
	}
	for _, name := range list {
		if err := a.checkMechanism(name); err != nil {
			return err
		}
	}
	for _, name := range allMechanisms {
		if slices.Contains(list, name) {
			a.mechanisms = append(a.mechanisms, name)
		}
	}
	if len(a.mechanisms) == 0 {
		return errors.New("no mechanism is left")
	}
	for listener, names := range a.listenerMechanisms {
		for _, name := range names {
			if !slices.Contains(a.mechanisms, name) {
				return fmt.Errorf("listener %s: mechanism %q is not among those of all listeners", listener, name)
			}
		}
	}
	return nil
}

// defaultMechanisms omits SCRAM, which works only for users whose passwords are stored for it.
// A client that prefers SCRAM would report a wrong password to all others.
func (a *Authenticator) defaultMechanisms() (list []string) {
	for _, name := range allMechanisms {
		if strings.HasPrefix(name, "SCRAM") || a.checkMechanism(name) != nil {
			continue
		}
		if (name == OAuthBearer || name == XOAuth2) && !a.hasMethod(OAuth) {
			continue // with passthrough the backend may not accept tokens
		}
		list = append(list, name)
	}
	return list
}

// checkMechanism returns why no method could verify a login by this mechanism, or nil.
func (a *Authenticator) checkMechanism(name string) error {
	switch name {
	case sasl.Plain, sasl.Login:
		if !a.canVerify(passwordCredential) {
			return fmt.Errorf("mechanism %s needs a method that verifies passwords", name)
		}
	case OAuthBearer, XOAuth2:
		if !a.canVerify(tokenCredential) {
			return fmt.Errorf("mechanism %s needs method oauth or passthrough", name)
		}
	case scramSHA256, scramSHA256Plus:
		if !a.hasMethod(File) && !a.hasMethod(Redis) {
			return fmt.Errorf("mechanism %s needs method file or redis", name)
		}
		if a.scramSecret.IsZero() {
			return fmt.Errorf("mechanism %s needs a secret for the salts of unknown users", name)
		}
	case sasl.External:
		if !slices.Contains(sanTypes, a.certificateName) {
			return fmt.Errorf("mechanism %s needs the type of the certificate name that is the user", name)
		}
	default:
		return fmt.Errorf("mechanism %q is not one of %s", name, strings.Join(allMechanisms, ", "))
	}
	return nil
}

func (a *Authenticator) canVerify(c credentialType) bool {
	return slices.ContainsFunc(a.methods, func(m namedMethod) bool { return m.canVerify(c) })
}

func (a *Authenticator) hasMethod(name string) bool {
	return slices.ContainsFunc(a.methods, func(m namedMethod) bool { return m.name == name })
}

// Mechanisms returns the SASL mechanisms offered to a client, in order of preference: those of
// its listener that its connection supports.
func (a *Authenticator) Mechanisms(c *Client) []string {
	list := make([]string, 0, len(a.mechanisms))
	for _, name := range a.mechanisms {
		if a.isOffered(name, c) {
			list = append(list, name)
		}
	}
	return list
}

// AllowsPasswords reports whether a client may send a plaintext password. If not, the LOGIN
// command is not available either.
func (a *Authenticator) AllowsPasswords(c *Client) bool {
	return slices.Contains(a.mechanisms, sasl.Plain) && a.isOffered(sasl.Plain, c) ||
		slices.Contains(a.mechanisms, sasl.Login) && a.isOffered(sasl.Login, c)
}

// isOffered reports whether an enabled mechanism is available to this client.
func (a *Authenticator) isOffered(name string, c *Client) bool {
	if allowed, restricted := a.listenerMechanisms[c.Listener]; restricted && !slices.Contains(allowed, name) {
		return false
	}
	switch name {
	case scramSHA256Plus:
		return c.canBind()
	case sasl.External:
		return c.hasVerifiedCertificate()
	}
	return true
}

// findOffered returns the mechanism that a client names. The name is not case-sensitive (RFC
// 9051 §6.2.2: auth-type is an atom). strings.ToUpper would map a dotless i to I.
func (a *Authenticator) findOffered(name string, c *Client) (string, bool) {
	i := slices.IndexFunc(a.mechanisms, func(enabled string) bool { return strings.EqualFold(name, enabled) && len(name) == len(enabled) })
	if i < 0 || !a.isOffered(a.mechanisms[i], c) {
		return "", false
	}
	return a.mechanisms[i], true
}
