package config

import (
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"imapgate/internal/duration"
)

// decoder fills a Config from the syntax tree. It goes on after a problem, so
// that all are found in one run.
type decoder struct{ *problems }

// value decodes n into v. f describes the key, or the key of the list or map
// that n is in.
func (d decoder) value(n ast.Node, v reflect.Value, f field, key string) {
	if d.at[key] == (position{}) { // a block's place is that of its key, noted before
		d.at[key] = place(n)
	}
	switch v.Interface().(type) {
	case time.Duration:
		d.duration(n, v, f, key)
		return
	case netip.Prefix:
		d.prefix(n, v, key)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.block(n, v, key)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		setDefaults(v.Elem())
		d.block(n, v.Elem(), key)
	case reflect.Map:
		d.table(n, v, f, key)
	case reflect.Slice:
		d.list(n, v, f, key)
	case reflect.String:
		d.text(n, v, f, key)
	case reflect.Bool:
		if b, ok := n.(*ast.BoolNode); ok {
			v.SetBool(b.Value)
		} else {
			d.mismatch(n, key, "true or false")
		}
	case reflect.Int:
		d.number(n, v, f, key)
	default:
		panic("config: no decoding for " + v.Type().String())
	}
}

// members gives the pairs of a mapping. Keys given twice and keys that are not
// plain words are problems.
func (d decoder) members(n ast.Node, key string) []*ast.MappingValueNode {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		d.mismatch(n, key, "a mapping")
		return nil
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(slices.Clone(pairs), func(pair *ast.MappingValueNode) bool {
		name, ok := keyText(pair.Key)
		switch {
		case !ok:
			d.addAt(place(pair.Key), key, "a key is a word here; anchors, aliases, merges and tags are not supported")
		case seen[name]:
			d.addAt(place(pair.Key), Below(key, name), "is there twice")
		}
		if !ok || seen[name] {
			return true
		}
		seen[name] = true
		d.at[Below(key, name)] = place(pair.Key)
		return false
	})
}

// block decodes a mapping with fixed keys.
func (d decoder) block(n ast.Node, v reflect.Value, key string) {
	known := fields(v.Type())
	for _, pair := range d.members(n, key) {
		name, _ := keyText(pair.Key)
		i := slices.IndexFunc(known, func(f field) bool { return f.name == name })
		if i < 0 {
			d.add(Below(key, name), "%s", unknownKey(name, known))
			continue
		}
		d.value(pair.Value, v.Field(known[i].index), known[i], Below(key, name))
	}
}

// table decodes a mapping whose keys are names of the operator's.
func (d decoder) table(n ast.Node, v reflect.Value, f field, key string) {
	v.Set(reflect.MakeMap(v.Type()))
	for _, pair := range d.members(n, key) {
		name, _ := keyText(pair.Key)
		one := reflect.New(v.Type().Elem()).Elem()
		if one.Kind() == reflect.Struct {
			setDefaults(one)
		}
		d.value(pair.Value, one, f, Below(key, name))
		v.SetMapIndex(reflect.ValueOf(name), one)
	}
}

func (d decoder) list(n ast.Node, v reflect.Value, f field, key string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.mismatch(n, key, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		one := v.Index(i)
		if one.Kind() == reflect.Struct && one.Type() != reflect.TypeFor[netip.Prefix]() {
			setDefaults(one)
		}
		d.value(item, one, f, Indexed(key, i))
	}
}

func (d decoder) text(n ast.Node, v reflect.Value, f field, key string) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		d.mismatch(n, key, `a string; put it in "quotes"`)
		return
	default:
		d.mismatch(n, key, "a string")
		return
	}
	d.at[key] = place(n)
	switch {
	case slices.Contains(f.later, s):
		d.add(key, "%s is not available in this version; it has %s", s, strings.Join(f.oneof, ", "))
	case len(f.oneof) > 0 && !slices.Contains(f.oneof, s):
		d.add(key, "%s is not one of %s", quote(s), strings.Join(f.oneof, ", "))
	default:
		if wrong := checkForm(f.form, s); wrong != "" {
			d.add(key, "%s", wrong)
			return
		}
		v.SetString(s)
	}
}

func (d decoder) number(n ast.Node, v reflect.Value, f field, key string) {
	whole, ok := n.(*ast.IntegerNode)
	if !ok {
		d.mismatch(n, key, "a whole number")
		return
	}
	d.at[key] = place(n)
	switch value := whole.Value.(type) {
	case int64:
		v.SetInt(value)
	case uint64:
		v.SetInt(int64(min(value, math.MaxInt64)))
	}
	if wrong := f.outside(v); wrong != "" {
		d.add(key, "%s %s", quote(whole.Token.Value), wrong)
	}
}

func (d decoder) duration(n ast.Node, v reflect.Value, f field, key string) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.mismatch(n, key, "a duration such as 30s, 5m, 24h or 7d")
		return
	}
	d.at[key] = place(n)
	length, err := duration.Parse(s.Value)
	if err != nil {
		d.add(key, "%s is not a duration such as 30s, 5m, 24h or 7d", quote(s.Value))
		return
	}
	v.SetInt(int64(length))
	if wrong := f.outside(v); wrong != "" {
		d.add(key, "%s %s", quote(s.Value), wrong)
	}
}

// prefix takes a network, or an address as the network of one.
func (d decoder) prefix(n ast.Node, v reflect.Value, key string) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.mismatch(n, key, "a network such as 10.0.0.0/8 or 2001:db8::/32")
		return
	}
	d.at[key] = place(n)
	net, err := netip.ParsePrefix(s.Value)
	if addr, single := netip.ParseAddr(s.Value); single == nil && addr.Zone() == "" {
		net, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil:
		d.add(key, "%s is not a network such as 10.0.0.0/8 or 2001:db8::/32", quote(s.Value))
	case net.Addr().Is4In6():
		d.add(key, "%s: write the IPv4 network itself", quote(s.Value))
	case net != net.Masked():
		d.add(key, "%s has bits beyond its length; the network is %s", quote(s.Value), net.Masked())
	default:
		v.Set(reflect.ValueOf(net))
	}
}

// mismatch says what was expected and what kind of thing stands there instead,
// never its text: it may be a secret in the wrong place.
func (d decoder) mismatch(n ast.Node, key, want string) {
	got := "something else"
	switch n.(type) {
	case nil, *ast.NullNode:
		got = "nothing; leave the key out for its default"
	case *ast.MappingNode, *ast.MappingValueNode:
		got = "a mapping"
	case *ast.SequenceNode:
		got = "a list"
	case *ast.StringNode, *ast.LiteralNode:
		got = "a string"
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		got = "a number"
	case *ast.BoolNode:
		got = "true or false"
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		got = "an anchor, an alias or a tag, which are not supported"
	}
	where := place(n)
	if where == (position{}) {
		where = d.at[key]
	}
	d.addAt(where, key, "expected %s, got %s", want, got)
}
