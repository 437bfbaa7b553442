package settings

import (
	"reflect"
	"time"
)

// OverrideFields returns the keys that a listener may override in a struct of limits. Their
// default is to inherit: -1, or no list.
func OverrideFields(t reflect.Type) []Field {
	var list []Field
	for _, f := range Fields(t) {
		switch {
		case f.Global:
			continue
		case f.Type == reflect.TypeFor[time.Duration]():
			f.DefaultText, f.Min = "-1s", "-1s"
		case f.Type.Kind() == reflect.Int:
			f.DefaultText, f.Min = "-1", "-1"
		default:
			f.DefaultText, f.HasDefault = "", false
		}
		list = append(list, f)
	}
	return list
}

// Override returns a copy of limits with a listener's overrides: numbers that are not negative,
// and lists.
func Override[T any](limits, overrides T) T {
	applyOverrides(reflect.ValueOf(&limits).Elem(), reflect.ValueOf(overrides))
	return limits
}

func applyOverrides(limits, overrides reflect.Value) {
	for _, f := range OverrideFields(limits.Type()) {
		limit, override := limits.FieldByIndex(f.Index), overrides.FieldByIndex(f.Index)
		switch {
		case limit.Kind() == reflect.Struct:
			applyOverrides(limit, override)
		case limit.Kind() == reflect.Slice && override.IsNil(), limit.CanInt() && override.Int() < 0: // inherited
		default:
			limit.Set(override)
		}
	}
}
