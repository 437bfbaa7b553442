// Package settings reads the struct tags that describe an operator's settings.
//
// A package that has settings declares them once, in a struct whose fields have these tags:
//
//	yaml     the key; fields with "-" are no keys
//	doc      the text of the reference
//	default  the value of a key that is left out
//	min, max bounds of a number or a duration
//	oneof    the allowed words
//	set      the type of internal/event whose words are allowed, and a tag that they must have
//	later    words that a later version will support
//	form     a check of internal/config
//	example  a value for the reference
//	was      the key's name in earlier versions
//	file     the effect of a change to the file that the value names
//	reload   what a change of the value can reach: "live", sessions that exist; "new", connections
//	         and logins after it; "restart", the next process
//	global   "true": a listener cannot override the limit
//	listener the text of the reference for a listener's override
//	override "true": the block has the limits that a listener overrides
//
// An embedded struct without tags adds its keys to those of the struct around it. internal/config composes the
// structs of all packages to one file.
package settings

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

// Field is one key as its struct tag describes it.
type Field struct {
	Index       []int // for reflect.Value.FieldByIndex
	Type        reflect.Type
	Name        string // of the key
	FormerName  string // the key's name in earlier versions
	DefaultText string
	HasDefault  bool
	OneOf       []string // allowed words
	Unsupported []string // words that a later version will support
	Min, Max    string   // bounds; "": none
	Format      string   // a check of internal/config
	FileEffect  string   // effect of a change to the file that the value names; "": no file
	Reload      string   // live, new or restart; "" for a block
	Doc         string
	Example     string
	Global      bool   // a listener cannot override it
	ListenerDoc string // Doc of a listener's override
	IsOverride  bool   // the block has a listener's overrides
}

// Fields returns the keys of a struct type, in the order of the reference.
func Fields(t reflect.Type) []Field {
	var list []Field
	for i := range t.NumField() {
		part := t.Field(i)
		tag := part.Tag
		name, tagged := tag.Lookup("yaml")
		if part.Anonymous && part.Type.Kind() == reflect.Struct && !tagged {
			for _, f := range Fields(part.Type) {
				f.Index = append([]int{i}, f.Index...)
				list = append(list, f)
			}
			continue
		}
		if !tagged || name == "-" {
			continue
		}
		f := Field{Index: part.Index, Type: part.Type, Name: name, FormerName: tag.Get("was"), Format: tag.Get("form"), FileEffect: tag.Get("file"), Reload: tag.Get("reload"),
			OneOf: allowedWords(tag), Unsupported: strings.Fields(tag.Get("later")), Min: tag.Get("min"), Max: tag.Get("max"),
			Doc: tag.Get("doc"), Example: tag.Get("example"), Global: tag.Get("global") == "true", ListenerDoc: tag.Get("listener"), IsOverride: tag.Get("override") == "true"}
		f.DefaultText, f.HasDefault = tag.Lookup("default")
		list = append(list, f)
	}
	return list
}

// allowedWords returns the words that a key allows: those of its tag, or of a set of
// internal/event, which may be followed by a tag of the words.
func allowedWords(tag reflect.StructTag) []string {
	if set := strings.Fields(tag.Get("set")); len(set) > 0 {
		later := strings.Fields(tag.Get("later"))
		words := slices.DeleteFunc(event.Values(set[0], set[1:]...), func(word string) bool { return slices.Contains(later, word) })
		if len(words) == 0 { // otherwise every word would be allowed
			panic("settings: no words in the set " + tag.Get("set"))
		}
		return words
	}
	return strings.Fields(tag.Get("oneof"))
}

// Default returns a T whose keys all have their defaults.
func Default[T any]() T {
	var t T
	SetDefaults(reflect.ValueOf(&t).Elem(), Fields)
	return t
}

// SetDefaults sets every key of v to its default. Pointers, maps and lists without a
// default stay nil. keys is Fields or OverrideFields.
func SetDefaults(v reflect.Value, keys func(reflect.Type) []Field) {
	for _, f := range keys(v.Type()) {
		part := v.FieldByIndex(f.Index)
		switch {
		case part.Kind() == reflect.Struct:
			SetDefaults(part, keys)
		case f.HasDefault:
			if err := setText(part, f.DefaultText); err != nil {
				panic(fmt.Sprintf("settings: default of %s: %v", f.Name, err))
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
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
		return nil
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		v.SetBool(b)
		return err
	case reflect.Int:
		n, err := strconv.Atoi(text)
		v.SetInt(int64(n))
		return err
	}
	return fmt.Errorf("%s has no text form", v.Type())
}

// CheckBounds returns how v exceeds the field's bounds, or "".
func (f Field) CheckBounds(v reflect.Value) string {
	low, high := reflect.New(v.Type()).Elem(), reflect.New(v.Type()).Elem()
	if f.Min != "" && setText(low, f.Min) == nil && v.Int() < low.Int() {
		return "is less than " + f.Min
	}
	if f.Max != "" && setText(high, f.Max) == nil && v.Int() > high.Int() {
		return "is more than " + f.Max
	}
	return ""
}

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
