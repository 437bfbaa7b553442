package identity

import (
	"fmt"
	"sync/atomic"
	"unique"
)

const redacted = "[secret]"

// Secret is a password, a token or a password hash. However it is printed,
// logged or encoded, it says "[secret]"; Reveal is the one way to its bytes, so
// that every use can be found by name. It is held by a handle because fmt reaches
// into unexported fields of what holds it, past every method here, and finds an
// address; equal secrets have equal handles, so == compares what it seems to.
//
// A secret of a LiveSecret is whatever that holds when it is revealed; Now gives what
// can be compared.
type Secret struct {
	handle unique.Handle[string]
	live   *LiveSecret // nil: h is all
}

// LiveSecret is a secret that can be replaced while it is in use, as its file is. It is
// safe for concurrent use.
type LiveSecret struct{ current atomic.Pointer[Secret] }

// NewLiveSecret holds s.
func NewLiveSecret(s string) *LiveSecret {
	l := &LiveSecret{}
	l.Replace(s)
	return l
}

// Replace makes s what is revealed from now on.
func (l *LiveSecret) Replace(s string) {
	next := NewSecret(s)
	l.current.Store(&next)
}

// Secret is what l holds, now and later.
func (l *LiveSecret) Secret() Secret { return Secret{live: l} }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{handle: unique.Make(s)} }

// Reveal is the secret itself.
func (s Secret) Reveal() string {
	s = s.Current()
	if s == (Secret{}) {
		return ""
	}
	return s.handle.Value()
}

// Current is the secret as it is at present, for who reveals it more than once.
func (s Secret) Current() Secret {
	if s.live == nil {
		return s
	}
	return *s.live.current.Load()
}

// IsZero says whether there is no secret.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb reaches the field.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler: JSON, YAML and log encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}
