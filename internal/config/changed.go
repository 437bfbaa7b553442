package config

import (
	"maps"
	"reflect"
	"slices"

	"imapgate/internal/settings"
)

// ChangedKeys returns the keys whose values differ between two configurations, in
// the form of Problem.Key. A list that differs is one key. The contents of files and
// of the environment are not compared.
func (c *Config) ChangedKeys(other *Config) []string {
	return changedKeys(reflect.ValueOf(*c), reflect.ValueOf(*other), "")
}

func changedKeys(a, b reflect.Value, key string) (keys []string) {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	switch {
	case a.Kind() == reflect.Struct && len(settings.Fields(a.Type())) > 0:
		for _, f := range settings.Fields(a.Type()) {
			keys = append(keys, changedKeys(a.FieldByIndex(f.Index), b.FieldByIndex(f.Index), MemberKey(key, f.Name))...)
		}
	case a.Kind() == reflect.Map:
		for _, name := range mapKeys(a, b) {
			valueA, valueB := a.MapIndex(reflect.ValueOf(name)), b.MapIndex(reflect.ValueOf(name))
			if !valueA.IsValid() || !valueB.IsValid() {
				keys = append(keys, MemberKey(key, name))
			} else {
				keys = append(keys, changedKeys(valueA, valueB, MemberKey(key, name))...)
			}
		}
	case !reflect.DeepEqual(a.Interface(), b.Interface()):
		keys = append(keys, key)
	}
	return keys
}

// mapKeys returns the names in any of the maps, sorted.
func mapKeys(values ...reflect.Value) []string {
	names := make(map[string]bool)
	for _, m := range values {
		for _, name := range m.MapKeys() {
			names[name.String()] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
