package identity

import (
	"fmt"
	"unique"
)

const hidden = "[secret]"

// Secret is a password, a token or a password hash. However it is printed,
// logged or encoded, it says "[secret]"; Reveal is the one way to its bytes, so
// that every use can be found by name. It is held by a handle because fmt reaches
// into unexported fields of what holds it, past every method here, and finds an
// address; equal secrets have equal handles, so == compares what it seems to.
type Secret struct{ h unique.Handle[string] }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{unique.Make(s)} }

// Reveal is the secret itself.
func (s Secret) Reveal() string {
	if s == (Secret{}) {
		return ""
	}
	return s.h.Value()
}

// IsZero says whether there is no secret.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String implements fmt.Stringer.
func (Secret) String() string { return hidden }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return hidden }

// Format implements fmt.Formatter, so that no verb reaches the field.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hidden)) }

// MarshalText implements encoding.TextMarshaler: JSON, YAML and log encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = NewSecret(string(text))
	return nil
}
