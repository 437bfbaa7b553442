package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"imapgate/internal/identity"
)

var (
	// ErrDenied: the password is wrong, the user is unknown, or the name or the
	// password is one that nobody has. Callers cannot and must not tell which.
	ErrDenied = errors.New("login denied")
	// ErrUnavailable: nobody could say whether the password is right. The source
	// is away or holds nonsense, or too many verifications are waiting.
	ErrUnavailable = errors.New("login cannot be checked now")
	// ErrTooLong: the token, or the message with it, is longer than any that is taken.
	// It was not looked at, and is no guess.
	ErrTooLong = errors.New("token is too long")
	// ErrNoResponse comes wrapped with ErrUnavailable where a service was shown the
	// password and gave no usable answer: whether it was right is open.
	ErrNoResponse = errors.New("asked, and no answer came")
	// ErrUnknown is what a PasswordLookup returns, bare or wrapped, for a user who
	// has no password there; the next method is asked. Whoever wires a lookup to
	// auth translates the source's own word for it. Every other error of a lookup
	// but ErrDenied becomes ErrUnavailable. Authenticate never returns ErrUnknown.
	ErrUnknown = errors.New("user has no password here")
)

const (
	// maxPassword bounds a password in bytes, so that hashing one has a bound too.
	maxPassword = 1024
	// defaultMaxQueued is how many verifications may wait for a core.
	defaultMaxQueued = 64
)

// Config is what an operator decides.
type Config struct {
	Methods    []string       // asked in this order
	Names      identity.Names // how user names are read
	PasswdFile string         // the passwd-file, when Methods has File
	Verifiers  int            // passwords hashed at once; 0 means one for each core
	MaxQueued  int            // verifications that may wait for one; 0 means 64

	Mechanisms         []string            // SASL mechanisms; none: those that defaults names
	ListenerMechanisms map[string][]string // of them, those of a listener; a listener that is not there has all
	SCRAMSecret        identity.Secret     // what the salts of unknown users are made of; the same at all gateways
	SCRAMIterations    int                 // iterations that such users seem to have; the same at all gateways; 0: as Hash makes them
	CertificateName    string              // the kind of name in a client's certificate that is the user: email, dns or uri
}

// Authenticator turns a Login into an Identity.
type Authenticator struct {
	// Set once.
	names              identity.Names
	methods            []namedMethod
	file               *passwdFile // also among methods; nil without
	verifier           *verifier
	mechanisms         []string            // enabled, the preferred one first
	listenerMechanisms map[string][]string // as in Config
	scramSecret        identity.Secret
	scramIterations    int           // of PBKDF2, for users without keys for SCRAM
	minChallengeTime   time.Duration // of the time to a challenge of SCRAM
	certificateName    string
	log                *zap.Logger
	// iterationsWarning guards itself.
	iterationsWarning rate.Sometimes
}

// SettingError is what is wrong with a setting: methods, mechanisms or file.path.
type SettingError struct {
	Setting string
	Err     error
}

func (e *SettingError) Error() string { return "auth: " + e.Err.Error() }
func (e *SettingError) Unwrap() error { return e.Err }

// New makes an Authenticator. The passwd-file is read here: a gateway does not
// start with a file that it would refuse while it runs.
func New(cfg Config, sources Sources, log *zap.Logger) (*Authenticator, error) {
	if _, err := cfg.Names.Canonicalize("a"); err != nil {
		return nil, errors.New("auth: the default domain has characters or a form that no domain has")
	}
	if len(cfg.Methods) == 0 {
		return nil, errors.New("auth: no method")
	}
	if cfg.Verifiers < 0 || cfg.MaxQueued < 0 {
		return nil, errors.New("auth: verifiers and queue cannot be negative")
	}
	a := &Authenticator{names: cfg.Names, verifier: newVerifier(cfg.Verifiers, cfg.MaxQueued),
		listenerMechanisms: cfg.ListenerMechanisms, scramSecret: cfg.SCRAMSecret, scramIterations: cmp.Or(cfg.SCRAMIterations, defaultScramIterations), minChallengeTime: defaultMinChallengeTime,
		certificateName: cfg.CertificateName, log: log, iterationsWarning: rate.Sometimes{Interval: time.Minute}}
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

// Run keeps the passwd-file's users up to date until ctx is done. Without a
// file it only waits. It returns nil.
func (a *Authenticator) Run(ctx context.Context) error {
	if a.file == nil {
		<-ctx.Done()
		return nil
	}
	a.file.watch(ctx)
	return nil
}

// Canonicalize is the canonical name of what a client, or a tool, calls a user. The
// error is ErrDenied: a name that no account can have is not worth a word more.
func (a *Authenticator) Canonicalize(raw string) (identity.User, error) {
	u, err := a.names.Canonicalize(raw)
	if err != nil {
		return identity.User{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return u, nil
}

// Authenticate asks the methods in order, or takes a proof for what it is. The
// error is ErrDenied, perhaps in a Wait, or ErrUnavailable, wrapped. While it
// waits for its turn to verify it obeys ctx; the hashing itself cannot be
// interrupted, but its length is bounded by what parse accepts, and no more of
// it runs at once than there are verifiers.
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
		return Identity{}, fmt.Errorf("no method judges tokens: %w", ErrDenied)
	}
	return Identity{}, a.verifyDecoy(ctx, l.Password)
}

// acceptProof is the identity of a login with a proof. Of a certificate's user an
// authentication server is told, as by nginx: it may refuse, and says where the
// mailbox is.
func (a *Authenticator) acceptProof(ctx context.Context, l Login) (Identity, error) {
	id, err := Identity{user: l.User, method: l.proof.method}.orError(l.proof.err)
	if err != nil || l.Mechanism != SASLExternal {
		return id, err
	}
	for _, m := range a.methods {
		httpServer, ok := m.method.(authServerMethod)
		if !ok {
			continue
		}
		if id, err = httpServer.authenticate(ctx, l); err != nil {
			return Identity{}, fmt.Errorf("method %s of a certificate's user: %w", m.name, err)
		}
		id.method = l.proof.method
	}
	return id, nil
}

// verifyDecoy is a verification that nobody can pass. An unknown name has been
// looked up along the same way as a user of the last source, so it pays what
// most users of the last source pay; where costs are mixed within one source,
// users with a rarer cost can still be told from names that nobody has.
func (a *Authenticator) verifyDecoy(ctx context.Context, password identity.Secret) error {
	if _, err := a.verifier.verify(ctx, a.typicalParams().newDecoy(), password); err != nil {
		return err
	}
	return fmt.Errorf("no method knows the user: %w", ErrDenied)
}

// typicalParams is the kind of the last source that knows one.
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
