package config

import "errors"

// keyError is an error about what a key names.
type keyError struct {
	key string
	err error
}

func (k *keyError) Error() string { return k.key + ": " + k.err.Error() }
func (k *keyError) Unwrap() error { return k.err }

// WithKey says of an error which key it is about, such as tls.certificates[0].key. It is
// for files and addresses that are opened after Load. nil stays nil, and an error that
// has a key keeps it.
func WithKey(key string, err error) error {
	if _, hasKey := err.(*keyError); err == nil || hasKey {
		return err
	}
	return &keyError{key, err}
}

// Locate gives errors of At, joined or alone, the form of Load's: an *Invalid with the
// place of each key in the file. A key that is left out stands at the nearest block
// around it that is there; an error without a key has no place. nil stays nil.
func (c *Config) Locate(err error) error {
	p := &problems{positions: c.positions, badKeys: make(map[string]bool)}
	p.addJoined("", err)
	return p.err(c.file)
}

// SplitErrors are the errors that errors.Join made one, of joins within joins too; none of nil.
func SplitErrors(err error) (parts []error) {
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok || errors.Join(joined.Unwrap()...).Error() != err.Error(): // one with two causes
		return []error{err}
	}
	for _, part := range joined.Unwrap() {
		parts = append(parts, SplitErrors(part)...)
	}
	return parts
}

// addJoined notes every error of a join by itself.
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
