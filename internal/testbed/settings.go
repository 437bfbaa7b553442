package testbed

import (
	"reflect"
	"slices"

	"imapgate/internal/settings"
)

// WithDefaults returns s, a settings struct or a Config that embeds one, with the defaults of
// all keys that are zero, but for those in keep: their zero is meant.
func WithDefaults[T any](s T, keep ...string) T {
	var defaults T
	v := reflect.ValueOf(&s).Elem()
	settings.SetDefaults(reflect.ValueOf(&defaults).Elem())
	fillZero(v, reflect.ValueOf(defaults), keep)
	return s
}

func fillZero(v, defaults reflect.Value, keep []string) {
	for _, f := range settings.Fields(v.Type()) {
		part, byDefault := v.FieldByIndex(f.Index), defaults.FieldByIndex(f.Index)
		switch {
		case slices.Contains(keep, f.Name):
		case part.Kind() == reflect.Struct:
			fillZero(part, byDefault, keep)
		case part.IsZero():
			part.Set(byDefault)
		}
	}
}
