package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"imapgate/internal/duration"
	"imapgate/internal/event"
)

// field is one key as its struct tag describes it.
type field struct {
	index        int
	name         string
	formerName   string // name in earlier versions
	defaultText  string // the default as text
	hasDefault   bool
	oneof        []string // allowed words
	unsupported  []string // words that a later version will support
	min          string
	max          string
	format       string // a check of formats.go
	reloadEffect string // a word of reloadEffects, if the value names a file
	doc          string
	example      string
}

// reloadEffects describes the effect of a change to a file that a key names, by the
// word in the key's tag. Constant.
var reloadEffects = map[string]string{
	"tls":     "it is reloaded; new connections use it",
	"secret":  "it is reloaded and used from then on",
	"users":   "it is reloaded; new logins are verified with it",
	"restart": "the log reports that a restart is needed",
	"own":     "only the gateway writes it",
}

// fieldsOf returns the keys of a struct type, in the order of the reference.
func fieldsOf(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		name := tag.Get("yaml")
		if name == "-" {
			continue
		}
		f := field{index: i, name: name, formerName: tag.Get("was"), format: tag.Get("form"), reloadEffect: tag.Get("file"), doc: tag.Get("doc"), example: tag.Get("example"),
			oneof: allowedWords(tag), unsupported: strings.Fields(tag.Get("later")),
			min: tag.Get("min"), max: tag.Get("max")}
		f.defaultText, f.hasDefault = tag.Lookup("default")
		list = append(list, f)
	}
	return list
}

// allowedWords returns the words that a key allows: those of its tag, or of a set of
// internal/event, which may be followed by a tag of the words.
func allowedWords(tag reflect.StructTag) []string {
	if set := strings.Fields(tag.Get("set")); len(set) > 0 {
		later := strings.Fields(tag.Get("later"))
		return slices.DeleteFunc(event.Values(set[0], set[1:]...), func(word string) bool { return slices.Contains(later, word) })
	}
	return strings.Fields(tag.Get("oneof"))
}

// setDefaults sets every key of v to its default. Pointers, maps and lists without a
// default stay nil.
func setDefaults(v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		part := v.Field(f.index)
		switch {
		case part.Kind() == reflect.Struct:
			setDefaults(part)
		case f.hasDefault:
			if err := setText(part, f.defaultText); err != nil {
				panic(fmt.Sprintf("config: default of %s: %v", f.name, err))
			}
		}
	}
}

// setText parses the text of a default or a bound into v.
func setText(v reflect.Value, text string) error {
	switch v.Interface().(type) {
	case time.Duration:
		d, err := duration.Parse(text)
		v.SetInt(int64(d))
		return err
	case string:
		v.SetString(text)
		return nil
	case []string:
		v.Set(reflect.ValueOf(strings.Fields(text)))
		return nil
	case []netip.Prefix:
		var networks []netip.Prefix
		for _, prefix := range strings.Fields(text) {
			network, err := netip.ParsePrefix(prefix)
			if err != nil {
				return err
			}
			networks = append(networks, network)
		}
		v.Set(reflect.ValueOf(networks))
		return nil
	case bool:
		b, err := strconv.ParseBool(text)
		v.SetBool(b)
		return err
	case int:
		n, err := strconv.Atoi(text)
		v.SetInt(int64(n))
		return err
	}
	return fmt.Errorf("%s has no text form", v.Type())
}

// checkBounds returns how v exceeds the field's bounds, or "".
func (f field) checkBounds(v reflect.Value) string {
	low, high := reflect.New(v.Type()).Elem(), reflect.New(v.Type()).Elem()
	if f.min != "" && setText(low, f.min) == nil && v.Int() < low.Int() {
		return "is less than " + f.min
	}
	if f.max != "" && setText(high, f.max) == nil && v.Int() > high.Int() {
		return "is more than " + f.max
	}
	return ""
}
