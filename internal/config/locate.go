package config

import "errors"

// keyError is an error about the value of a key.
type keyError struct {
	key string
	err error
}

func (k *keyError) Error() string { return k.key + ": " + k.err.Error() }
func (k *keyError) Unwrap() error { return k.err }

// WithKey adds to an error the key it is about, such as tls.certificates[0].key. It
// is for files and addresses that are opened after Load. nil stays nil, and an error
// that has a key keeps it.
func WithKey(key string, err error) error {
	if _, hasKey := err.(*keyError); err == nil || hasKey {
		return err
	}
	return &keyError{key, err}
}

// File returns the path that the configuration was loaded from.
func (c *Config) File() string { return c.file }

// Locate converts errors of WithKey, joined or single, to the form of Load's errors:
// an *InvalidError with the position of each key in the file. A key that is left out
// has the position of the nearest block that is present; an error without a key has
// none. nil stays nil.
func (c *Config) Locate(err error) error {
	p := &problems{positions: c.positions, badKeys: make(map[string]bool)}
	p.addJoined("", err)
	return p.err(c.file)
}

// SplitErrors returns the parts of an error of errors.Join, nested joins included.
// Of nil it returns none.
func SplitErrors(err error) (parts []error) {
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok || errors.Join(joined.Unwrap()...).Error() != err.Error(): // not a join, but one error with two causes
		return []error{err}
	}
	for _, part := range joined.Unwrap() {
		parts = append(parts, SplitErrors(part)...)
	}
	return parts
}

// addJoined records every part of a joined error separately.
func (p *problems) addJoined(key string, err error) {
	var pos position
	if key != "" {
		pos = p.nearestPosition(key)
	}
	for _, part := range SplitErrors(err) {
		if k, ok := part.(*keyError); ok {
			p.addJoined(k.key, k.err)
			continue
		}
		p.addAt(pos, key, "%s", part)
	}
}
