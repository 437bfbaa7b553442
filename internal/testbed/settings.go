package testbed

import (
	"reflect"
	"slices"

	"imapgate/internal/settings"
)

// NoLimit are the keys of limits whose zero means that there is no limit. Constant.
var NoLimit = []string{"connections", "user_quota", "exempt_networks",
	"per_minute", "per_day", "delay", "max_delay", "per_user_hour", "per_user_day", "per_user_network_hour", "ban_after"}

// WithDefaults returns s, a settings struct or a Config that embeds one, with the defaults of
// all keys that are zero, but for those in keep: their zero is meant.
func WithDefaults[T any](s T, keep ...string) T {
	fillZero(reflect.ValueOf(&s).Elem(), keep)
	return s
}

func fillZero(v reflect.Value, keep []string) {
	defaults := reflect.New(v.Type()).Elem()
	settings.SetDefaults(defaults, settings.Fields)
	for _, f := range settings.Fields(v.Type()) {
		part := v.FieldByIndex(f.Index)
		switch {
		case slices.Contains(keep, f.Name):
		case part.Kind() == reflect.Struct:
			fillZero(part, keep)
		case part.IsZero():
			part.Set(defaults.FieldByIndex(f.Index))
		case part.Kind() == reflect.Slice && part.Type().Elem().Kind() == reflect.Struct:
			for i := range part.Len() {
				fillZero(part.Index(i), keep)
			}
		}
	}
}
