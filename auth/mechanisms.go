package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"
)

// The names of the SCRAM mechanisms (RFC 7677). The first is also the name of the hash scheme.
const (
	scramSHA256     = "SCRAM-SHA-256"
	scramSHA256Plus = "SCRAM-SHA-256-PLUS"
)

// allMechanisms lists all mechanisms in order of preference. Clients with a choice often take
// the first that they know. Constant.
var allMechanisms = []string{scramSHA256Plus, scramSHA256, sasl.External, sasl.Plain, sasl.Login, OAuthBearer, XOAuth2}

// Constant text: it never quotes the message.
var (
	errAuthzID = errors.New("authorization identity is another user")
)

func isAuthError(err error) bool {
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTooLong)
}

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
