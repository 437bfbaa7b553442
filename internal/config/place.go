package config

import "errors"

// keyed is an error about what a key names.
type keyed struct {
	key string
	err error
}

func (k *keyed) Error() string { return k.key + ": " + k.err.Error() }
func (k *keyed) Unwrap() error { return k.err }

// At says of an error which key it is about, such as tls.certificates[0].key. It is
// for files and addresses that are opened after Load. nil stays nil, and an error that
// has a key keeps it.
func At(key string, err error) error {
	if _, has := err.(*keyed); err == nil || has {
		return err
	}
	return &keyed{key, err}
}

// Place gives errors of At, joined or alone, the form of Load's: an *Invalid with the
// place of each key in the file. A key that is left out stands at the nearest block
// around it that is there; an error without a key has no place. nil stays nil.
func (c *Config) Place(err error) error {
	p := &problems{at: c.at, bad: make(map[string]bool)}
	p.place("", err)
	return p.err(c.file)
}

// Parts are the errors that errors.Join made one, of joins within joins too; none of nil.
func Parts(err error) (all []error) {
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok || errors.Join(joined.Unwrap()...).Error() != err.Error(): // one with two causes
		return []error{err}
	}
	for _, one := range joined.Unwrap() {
		all = append(all, Parts(one)...)
	}
	return all
}

// place notes every error of a join by itself.
func (p *problems) place(key string, err error) {
	var where position
	if key != "" {
		where = p.near(key)
	}
	for _, one := range Parts(err) {
		if k, ok := one.(*keyed); ok {
			p.place(k.key, k.err)
			continue
		}
		p.addAt(where, key, "%s", one)
	}
}
