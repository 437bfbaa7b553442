package config

import (
	"maps"
	"reflect"
	"slices"
)

// Changed lists the keys whose values differ between two configurations, as
// Problem.Key has them; a list that differs is one key. What files and the
// environment hold is not compared.
func (c *Config) Changed(other *Config) []string {
	return changed(reflect.ValueOf(*c), reflect.ValueOf(*other), "")
}

func changed(a, b reflect.Value, key string) (keys []string) {
	if a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() {
		a, b = a.Elem(), b.Elem()
	}
	switch {
	case a.Kind() == reflect.Struct && len(fields(a.Type())) > 0:
		for _, f := range fields(a.Type()) {
			keys = append(keys, changed(a.Field(f.index), b.Field(f.index), Below(key, f.name))...)
		}
	case a.Kind() == reflect.Map:
		for _, name := range members(a, b) {
			one, two := a.MapIndex(reflect.ValueOf(name)), b.MapIndex(reflect.ValueOf(name))
			if !one.IsValid() || !two.IsValid() {
				keys = append(keys, Below(key, name))
			} else {
				keys = append(keys, changed(one, two, Below(key, name))...)
			}
		}
	case !reflect.DeepEqual(a.Interface(), b.Interface()):
		keys = append(keys, key)
	}
	return keys
}

// members are the names in either of two maps.
func members(of ...reflect.Value) []string {
	names := make(map[string]bool)
	for _, m := range of {
		for _, name := range m.MapKeys() {
			names[name.String()] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
