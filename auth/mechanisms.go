package auth

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"
)

// The names of the SCRAM mechanisms (RFC 7677); the first is that of the scheme
// too.
const (
	scramSHA256     = "SCRAM-SHA-256"
	scramSHA256Plus = "SCRAM-SHA-256-PLUS"
)

// mechanisms are all there are, the preferred one first: programs with a choice
// often take the first they know. Constant.
var mechanisms = []string{scramSHA256Plus, scramSHA256, sasl.External, sasl.Plain, sasl.Login, OAuthBearer, XOAuth2}

// Constant: what was said is never quoted.
var (
	errSomebodyElse = errors.New("authorization identity is another user")
)

func isOurs(err error) bool {
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrTooLong)
}

// offer enables the mechanisms of the operator's list, each of which somebody
// must be able to serve; or, without a list, those that serve every user.
func (a *Authenticator) offer(list []string) error {
	if len(list) == 0 {
		a.mechanisms = a.defaults()
	}
	for _, name := range list {
		if err := a.servable(name); err != nil {
			return err
		}
	}
	for _, name := range mechanisms {
		if slices.Contains(list, name) {
			a.mechanisms = append(a.mechanisms, name)
		}
	}
	if len(a.mechanisms) == 0 {
		return errors.New("no mechanism is left")
	}
	for listener, names := range a.listeners {
		for _, name := range names {
			if !slices.Contains(a.mechanisms, name) {
				return fmt.Errorf("listener %s: mechanism %q is not among those of all listeners", listener, name)
			}
		}
	}
	return nil
}

// defaults has no SCRAM: only users whose passwords are stored for it can log in
// with it, and a program that prefers it would tell all others that their
// password is wrong.
func (a *Authenticator) defaults() (list []string) {
	for _, name := range mechanisms {
		if strings.HasPrefix(name, "SCRAM") || a.servable(name) != nil {
			continue
		}
		if (name == OAuthBearer || name == XOAuth2) && !a.has(OAuth) {
			continue // passthrough may mean a backend that takes no tokens
		}
		list = append(list, name)
	}
	return list
}

// servable says why nobody here could judge a login by this mechanism.
func (a *Authenticator) servable(name string) error {
	switch name {
	case sasl.Plain, sasl.Login:
		if !a.judged(password) {
			return fmt.Errorf("mechanism %s needs a method that judges passwords", name)
		}
	case OAuthBearer, XOAuth2:
		if !a.judged(token) {
			return fmt.Errorf("mechanism %s needs method oauth or passthrough", name)
		}
	case scramSHA256, scramSHA256Plus:
		if !a.has(File) && !a.has(Redis) {
			return fmt.Errorf("mechanism %s needs method file or redis", name)
		}
		if a.secret.IsZero() {
			return fmt.Errorf("mechanism %s needs a secret for the salts of unknown users", name)
		}
	case sasl.External:
		if !slices.Contains(sanKinds, a.external) {
			return fmt.Errorf("mechanism %s needs to know which name in a certificate is the user", name)
		}
	default:
		return fmt.Errorf("mechanism %q is not one of %s", name, strings.Join(mechanisms, ", "))
	}
	return nil
}

func (a *Authenticator) judged(c credential) bool {
	return slices.ContainsFunc(a.methods, func(m named) bool { return m.judges(c) })
}

func (a *Authenticator) has(name string) bool {
	return slices.ContainsFunc(a.methods, func(m named) bool { return m.name == name })
}

// Mechanisms are the SASL mechanisms offered to a client, the preferred one
// first: those of its listener that its connection can serve.
func (a *Authenticator) Mechanisms(c *Client) []string {
	list := make([]string, 0, len(a.mechanisms))
	for _, name := range a.mechanisms {
		if a.serves(name, c) {
			list = append(list, name)
		}
	}
	return list
}

// TakesPasswords says whether a client may say a password as it is; without
// that there is no LOGIN command either.
func (a *Authenticator) TakesPasswords(c *Client) bool {
	return slices.Contains(a.mechanisms, sasl.Plain) && a.serves(sasl.Plain, c) ||
		slices.Contains(a.mechanisms, sasl.Login) && a.serves(sasl.Login, c)
}

// serves says whether an enabled mechanism is for this client.
func (a *Authenticator) serves(name string, c *Client) bool {
	if only, narrow := a.listeners[c.Listener]; narrow && !slices.Contains(only, name) {
		return false
	}
	switch name {
	case scramSHA256Plus:
		return c.bindable()
	case sasl.External:
		return c.certified()
	}
	return true
}

// offered finds a mechanism by the name a client gives it, which is not
// case-sensitive (RFC 9051 §6.2.2: auth-type is an atom). Not by
// strings.ToUpper, which makes an I of a dotless i.
func (a *Authenticator) offered(said string, c *Client) (string, bool) {
	i := slices.IndexFunc(a.mechanisms, func(name string) bool { return strings.EqualFold(said, name) && len(said) == len(name) })
	if i < 0 || !a.serves(a.mechanisms[i], c) {
		return "", false
	}
	return a.mechanisms[i], true
}
