package config

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"time"

	"imapgate/internal/duration"
	"imapgate/internal/settings"
)

// masked replaces a secret in Effective.
const masked = "[secret]"

// Effective returns the configuration in JSON with the keys of the file, every default applied
// and secrets masked.
func (c *Config) Effective() (json.RawMessage, error) {
	return json.Marshal(effectiveValue(reflect.ValueOf(*c)))
}

// effectiveValue returns the JSON form of a value of the configuration.
func effectiveValue(v reflect.Value) any {
	if d, ok := v.Interface().(time.Duration); ok {
		return duration.Format(d)
	}
	if text, ok := v.Interface().(fmt.Stringer); ok && v.Kind() != reflect.Pointer {
		return text.String()
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return effectiveValue(v.Elem())
	case reflect.Struct:
		block := make(map[string]any)
		for _, f := range settings.Fields(v.Type()) {
			field := v.FieldByIndex(f.Index)
			if block[f.Name] = effectiveValue(field); f.Name == "headers" { // of requests to auth servers: they may authenticate the gateway
				block[f.Name] = maskAll(field)
			}
		}
		return block
	case reflect.Map:
		block := make(map[string]any)
		for key, value := range v.Seq2() {
			block[fmt.Sprint(key)] = effectiveValue(value)
		}
		return block
	case reflect.Slice:
		list := make([]any, 0, v.Len())
		for i := range v.Len() {
			list = append(list, effectiveValue(v.Index(i)))
		}
		return list
	case reflect.String:
		return maskURL(v.String())
	}
	return v.Interface()
}

// maskAll masks the values of a map.
func maskAll(m reflect.Value) any {
	block := make(map[string]any)
	for key := range m.Seq2() {
		block[key.String()] = masked
	}
	return block
}

// maskURL masks the password in a URL.
func maskURL(text string) string {
	if !strings.Contains(text, "://") || !strings.Contains(text, "@") {
		return text
	}
	u, err := url.Parse(text)
	if err != nil || u.User == nil {
		return text
	}
	return u.Redacted()
}
