package identity

import (
	"fmt"
	"sync/atomic"
	"unique"
)

const redacted = "[secret]"

// Secret is a password, a token or a password hash. It is printed, logged and encoded as
// "[secret]"; only Reveal returns its bytes, so that every use can be found by name.
//
// It holds a handle because fmt reads unexported fields of the values that contain it,
// regardless of the methods here, and then prints an address. Equal secrets have equal handles,
// so == compares their content.
//
// A Secret of a LiveSecret always has that one's current content; Current returns a Secret that
// can be compared.
type Secret struct {
	handle unique.Handle[string]
	live   *LiveSecret // nil: handle is the content
}

// LiveSecret is a secret that can be replaced while it is in use, when its file changes. It is
// safe for concurrent use.
type LiveSecret struct{ current atomic.Pointer[Secret] }

// NewLiveSecret returns a LiveSecret with content s.
func NewLiveSecret(s string) *LiveSecret {
	l := &LiveSecret{}
	l.Replace(s)
	return l
}

// Replace makes s the content.
func (l *LiveSecret) Replace(s string) {
	next := NewSecret(s)
	l.current.Store(&next)
}

// Secret returns a Secret with the content of l, now and later.
func (l *LiveSecret) Secret() Secret { return Secret{live: l} }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{handle: unique.Make(s)} }

// Reveal returns the secret itself.
func (s Secret) Reveal() string {
	s = s.Current()
	if s == (Secret{}) {
		return ""
	}
	return s.handle.Value()
}

// Current returns the secret as it is now, for callers that reveal it more than once.
func (s Secret) Current() Secret {
	if s.live == nil {
		return s
	}
	return *s.live.current.Load()
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.Reveal() == "" }

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter, so that no verb reaches the field.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// MarshalText implements encoding.TextMarshaler: JSON, YAML and log encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
