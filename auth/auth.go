package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// The methods, as the operator names them.
const (
	Passthrough = "passthrough"
	File        = "file"
	Redis       = "redis"
)

// How a login can arrive: the closed set of Login.Mechanism. The LOGIN command
// and the SASL mechanism LOGIN are two things, so the mechanisms are written
// the way a CAPABILITY response lists them.
const (
	CommandLogin = "LOGIN"
	SASLPlain    = "AUTH=PLAIN"
	SASLLogin    = "AUTH=LOGIN"
)

var (
	// ErrDenied: the password is wrong, the user is unknown, or the name or the
	// password is one that nobody has. Callers cannot and must not tell which.
	ErrDenied = errors.New("login denied")
	// ErrUnavailable: nobody could say whether the password is right. The source
	// is away or holds nonsense, or too many verifications are waiting.
	ErrUnavailable = errors.New("login cannot be checked now")
	// ErrUnknown is what a PasswordLookup returns, bare or wrapped, for a user who
	// has no password there; the next method is asked. Whoever wires a lookup to
	// auth translates the source's own word for it. Every other error of a lookup
	// becomes ErrUnavailable. Authenticate never returns ErrUnknown.
	ErrUnknown = errors.New("user has no password here")
)

const (
	// maxPassword bounds a password in bytes, so that hashing one has a bound too.
	maxPassword = 1024
	// defaultQueue is how many verifications may wait for a core.
	defaultQueue = 64
)

// Login is what a client said, before anyone checked it.
type Login struct {
	User      identity.User
	Password  identity.Secret
	Mechanism string // CommandLogin, SASLPlain or SASLLogin
}

// Identity is a Login that somebody vouches for, or, with passthrough, one that
// the backend is going to decide. Only Authenticate makes one; the zero
// Identity is nobody's and its User is zero.
type Identity struct {
	// Set once.
	user     identity.User
	password identity.Secret
	method   string
}

// User is the canonical name.
func (i Identity) User() identity.User { return i.user }

// Password is what the client said, for the login at the backend.
func (i Identity) Password() identity.Secret { return i.password }

// Method is the method that decided: Passthrough, File or Redis.
func (i Identity) Method() string { return i.method }

// Decided says whether the password has been checked. When it is false the
// backend decides, so the backend must be shown this very password: a login
// there with any other right (a master user) would let everybody in.
func (i Identity) Decided() bool { return i.method == File || i.method == Redis }

// String is the user and the method.
func (i Identity) String() string { return i.user.String() + " by " + i.method }

// Format implements fmt.Formatter: fmt does not ask unexported fields how they
// want to be printed, so without it %v would show the password.
func (i Identity) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, i.String()) }

// Config is what an operator decides.
type Config struct {
	Methods       []string // Passthrough, File, Redis; asked in this order
	DefaultDomain string   // appended to a name without @; may be empty
	File          string   // the passwd-file, when Methods has File
	Verifiers     int      // passwords hashed at once; 0 means one for each core
	Queue         int      // verifications that may wait for one; 0 means 64
}

// PasswordLookup brings the stored hash of a user, with Dovecot's {SCHEME} in
// front or as a bare crypt(3) string. ErrUnknown says that the user has none.
type PasswordLookup func(ctx context.Context, u identity.User) (identity.Secret, error)

// source holds stored passwords: passwdFile and lookup.
type source interface {
	// password is the user's, or ErrUnknown, or ErrUnavailable.
	password(ctx context.Context, u identity.User) (stored, error)
	// typical is the kind that most passwords here are of; zero when not known.
	typical() kind
}

// method is a name and who is asked; passthrough has no source.
type method struct {
	name   string
	source source
}

// Authenticator turns a Login into an Identity.
type Authenticator struct {
	// Set once.
	domain   string
	methods  []method
	file     *passwdFile // also among methods; nil without
	verifier *verifier
}

// New makes an Authenticator. The passwd-file is read here: a gateway does not
// start with a file that it would refuse while it runs.
func New(cfg Config, redis PasswordLookup, log *zap.Logger) (*Authenticator, error) {
	if _, err := identity.Canon("a", cfg.DefaultDomain); err != nil {
		return nil, errors.New("auth: the default domain has characters or a form that no domain has")
	}
	if len(cfg.Methods) == 0 {
		return nil, errors.New("auth: no method")
	}
	if cfg.Verifiers < 0 || cfg.Queue < 0 {
		return nil, errors.New("auth: verifiers and queue cannot be negative")
	}
	a := &Authenticator{domain: cfg.DefaultDomain, verifier: newVerifier(cfg.Verifiers, cfg.Queue)}
	for i, name := range cfg.Methods {
		if slices.Contains(cfg.Methods[:i], name) {
			return nil, fmt.Errorf("auth: method %q is named twice", name)
		}
		if i > 0 && cfg.Methods[i-1] == Passthrough {
			return nil, fmt.Errorf("auth: method %q would never be asked: passthrough has to be last", name)
		}
		from, err := a.open(name, cfg, redis, log)
		if err != nil {
			return nil, fmt.Errorf("auth: %w", err)
		}
		a.methods = append(a.methods, method{name, from})
	}
	return a, nil
}

// open makes the source of one method.
func (a *Authenticator) open(name string, cfg Config, redis PasswordLookup, log *zap.Logger) (source, error) {
	switch name {
	case Passthrough:
		return nil, nil
	case File:
		f, err := openPasswdFile(cfg.File, cfg.DefaultDomain, log)
		if err != nil {
			return nil, err
		}
		a.file = f
		return f, nil
	case Redis:
		if redis == nil {
			return nil, errors.New("method redis needs Redis")
		}
		return newLookup(redis), nil
	}
	return nil, fmt.Errorf("method %q is not one of passthrough, file, redis", name)
}

// Run keeps the passwd-file's users up to date until ctx is done. Without a
// file it only waits. It returns nil.
func (a *Authenticator) Run(ctx context.Context) error {
	if a.file == nil {
		<-ctx.Done()
		return nil
	}
	a.file.follow(ctx)
	return nil
}

// Canon is the canonical name of what a client, or a tool, calls a user. The
// error is ErrDenied: a name that no account can have is not worth a word more.
func (a *Authenticator) Canon(raw string) (identity.User, error) {
	u, err := identity.Canon(raw, a.domain)
	if err != nil {
		return identity.User{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return u, nil
}

// Authenticate asks the methods in order. The error is ErrDenied or
// ErrUnavailable, wrapped. While it waits for its turn to verify it obeys ctx;
// the hashing itself cannot be interrupted, but its length is bounded by what
// parse accepts, and no more of it runs at once than there are verifiers.
func (a *Authenticator) Authenticate(ctx context.Context, l Login) (Identity, error) {
	// Neither refusal tells whether an account exists, so they may be quick.
	if l.User.IsZero() {
		return Identity{}, fmt.Errorf("%w: %w", ErrDenied, identity.ErrName)
	}
	if err := checkPassword(l.Password); err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrDenied, err)
	}
	for _, m := range a.methods {
		id := Identity{user: l.User, password: l.Password, method: m.name}
		if m.source == nil {
			return id, nil
		}
		hash, err := m.source.password(ctx, l.User)
		if errors.Is(err, ErrUnknown) {
			continue
		}
		if err != nil {
			return Identity{}, fmt.Errorf("method %s: %w", m.name, err)
		}
		right, err := a.verifier.verify(ctx, hash, l.Password)
		if err != nil {
			return Identity{}, fmt.Errorf("method %s: %w", m.name, err)
		}
		if !right {
			return Identity{}, fmt.Errorf("method %s: %w", m.name, ErrDenied)
		}
		return id, nil
	}
	return Identity{}, a.pretend(ctx, l.Password)
}

// pretend is a verification that nobody can pass. An unknown name has been
// looked up along the same way as a user of the last source, so it pays what
// most users of the last source pay; where costs are mixed within one source,
// users with a rarer cost can still be told from names that nobody has.
func (a *Authenticator) pretend(ctx context.Context, password identity.Secret) error {
	pay := fallbackKind()
	for _, m := range slices.Backward(a.methods) {
		if k := m.source.typical(); k.scheme != nil {
			pay = k
			break
		}
	}
	if _, err := a.verifier.verify(ctx, pay.decoy(), password); err != nil {
		return err
	}
	return fmt.Errorf("no method knows the user: %w", ErrDenied)
}

// checkPassword refuses what could change the meaning of a command sent on to
// a backend (CR, LF, NUL), every other control, and what is empty or too long.
func checkPassword(password identity.Secret) error {
	p := password.Reveal()
	if p == "" || len(p) > maxPassword {
		return errors.New("password is empty or too long")
	}
	for i := range len(p) {
		if p[i] < 0x20 || p[i] == 0x7f {
			return errors.New("password has control characters")
		}
	}
	return nil
}
