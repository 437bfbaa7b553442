package config

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"imapgate/internal/duration"
	"imapgate/internal/settings"
)

// decoder fills a Config from the syntax tree. It continues after a problem, so that
// one run finds all of them.
type decoder struct {
	*problems
	keys func(reflect.Type) []settings.Field // settings.Fields, or settings.OverrideFields in a listener's limits
}

// decodeValue decodes n into v. f describes the key, or the key of the list or map
// that contains n.
func (d decoder) decodeValue(n ast.Node, v reflect.Value, f settings.Field, key string) {
	if d.positions[key] == (position{}) { // the position of a block is that of its key, recorded before
		d.positions[key] = positionOf(n)
	}
	switch v.Interface().(type) {
	case time.Duration:
		d.decodeDuration(n, v, f, key)
		return
	case netip.Prefix:
		d.decodePrefix(n, v, key)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.decodeStruct(n, v, key)
	case reflect.Pointer:
		if f.IsOverride {
			d.keys = settings.OverrideFields
		}
		v.Set(reflect.New(v.Type().Elem()))
		settings.SetDefaults(v.Elem(), d.keys)
		d.decodeStruct(n, v.Elem(), key)
	case reflect.Map:
		d.decodeMap(n, v, f, key)
	case reflect.Slice:
		d.decodeList(n, v, f, key)
	case reflect.String:
		d.decodeString(n, v, f, key)
	case reflect.Bool:
		if b, ok := n.(*ast.BoolNode); ok {
			v.SetBool(b.Value)
		} else {
			d.addTypeProblem(n, key, "true or false")
		}
	case reflect.Int:
		d.decodeInt(n, v, f, key)
	default:
		panic("config: no decoding for " + v.Type().String())
	}
}

// mappingPairs returns the pairs of a mapping. Duplicate keys and keys that are not
// plain words are problems.
func (d decoder) mappingPairs(n ast.Node, key string) []*ast.MappingValueNode {
	var pairs []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		d.addTypeProblem(n, key, "a mapping")
		return nil
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(slices.Clone(pairs), func(pair *ast.MappingValueNode) bool {
		name, ok := parseKey(pair.Key)
		switch {
		case !ok:
			d.addAt(positionOf(pair.Key), key, "a key must be a plain word; anchors, aliases, merges and tags are not supported")
		case seen[name]:
			d.addAt(positionOf(pair.Key), MemberKey(key, name), "duplicate key")
		}
		if !ok || seen[name] {
			return true
		}
		seen[name] = true
		d.positions[MemberKey(key, name)] = positionOf(pair.Key)
		return false
	})
}

// decodeStruct decodes a mapping with fixed keys.
func (d decoder) decodeStruct(n ast.Node, v reflect.Value, key string) {
	known := d.keys(v.Type())
	for _, pair := range d.mappingPairs(n, key) {
		name, _ := parseKey(pair.Key)
		i := slices.IndexFunc(known, func(f settings.Field) bool { return f.Name == name })
		if i < 0 {
			d.add(MemberKey(key, name), "%s", explainUnknownKey(name, known))
			continue
		}
		d.decodeValue(pair.Value, v.FieldByIndex(known[i].Index), known[i], MemberKey(key, name))
	}
}

// decodeMap decodes a mapping whose keys are names that the operator chooses.
func (d decoder) decodeMap(n ast.Node, v reflect.Value, f settings.Field, key string) {
	v.Set(reflect.MakeMap(v.Type()))
	for _, pair := range d.mappingPairs(n, key) {
		name, _ := parseKey(pair.Key)
		value := reflect.New(v.Type().Elem()).Elem()
		if value.Kind() == reflect.Struct {
			settings.SetDefaults(value, d.keys)
		}
		d.decodeValue(pair.Value, value, f, MemberKey(key, name))
		v.SetMapIndex(reflect.ValueOf(name), value)
	}
}

func (d decoder) decodeList(n ast.Node, v reflect.Value, f settings.Field, key string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.addTypeProblem(n, key, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		value := v.Index(i)
		if value.Kind() == reflect.Struct && value.Type() != reflect.TypeFor[netip.Prefix]() {
			settings.SetDefaults(value, d.keys)
		}
		d.decodeValue(item, value, f, ItemKey(key, i))
	}
}

func (d decoder) decodeString(n ast.Node, v reflect.Value, f settings.Field, key string) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		d.addTypeProblem(n, key, `a string; put it in "quotes"`)
		return
	default:
		d.addTypeProblem(n, key, "a string")
		return
	}
	d.positions[key] = positionOf(n)
	switch {
	case slices.Contains(f.Unsupported, s):
		d.add(key, "%s is not available in this version; it has %s", s, strings.Join(f.OneOf, ", "))
	case len(f.OneOf) > 0 && !slices.Contains(f.OneOf, s):
		d.add(key, "%s is not one of %s", quote(s), strings.Join(f.OneOf, ", "))
	default:
		if problem := checkFormat(f.Format, s); problem != "" {
			d.add(key, "%s", problem)
			return
		}
		v.SetString(s)
	}
}

func (d decoder) decodeInt(n ast.Node, v reflect.Value, f settings.Field, key string) {
	node, ok := n.(*ast.IntegerNode)
	if !ok {
		d.addTypeProblem(n, key, "a whole number")
		return
	}
	d.positions[key] = positionOf(n)
	switch value := node.Value.(type) {
	case int64:
		v.SetInt(value)
	case uint64:
		v.SetInt(int64(min(value, math.MaxInt64)))
	}
	if problem := f.CheckBounds(v); problem != "" {
		d.add(key, "%s %s", quote(node.Token.Value), problem)
	}
}

func (d decoder) decodeDuration(n ast.Node, v reflect.Value, f settings.Field, key string) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.addTypeProblem(n, key, "a duration such as 30s, 5m, 24h or 7d")
		return
	}
	d.positions[key] = positionOf(n)
	value, err := duration.Parse(s.Value)
	if err != nil {
		d.add(key, "%s is not a duration such as 30s, 5m, 24h or 7d", quote(s.Value))
		return
	}
	v.SetInt(int64(value))
	if problem := f.CheckBounds(v); problem != "" {
		d.add(key, "%s %s", quote(s.Value), problem)
	}
}

// decodePrefix decodes a network; a single address is a network of one.
func (d decoder) decodePrefix(n ast.Node, v reflect.Value, key string) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		d.addTypeProblem(n, key, "a network such as 10.0.0.0/8 or 2001:db8::/32")
		return
	}
	d.positions[key] = positionOf(n)
	net, err := netip.ParsePrefix(s.Value)
	if addr, addrErr := netip.ParseAddr(s.Value); addrErr == nil && addr.Zone() == "" {
		net, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case err != nil:
		d.add(key, "%s is not a network such as 10.0.0.0/8 or 2001:db8::/32", quote(s.Value))
	case net.Addr().Is4In6():
		d.add(key, "%s: write it as an IPv4 network", quote(s.Value))
	case net != net.Masked():
		d.add(key, "%s has bits beyond its length; the network is %s", quote(s.Value), net.Masked())
	default:
		v.Set(reflect.ValueOf(net))
	}
}

// addTypeProblem reports the expected type and the type found, never the text: it
// may be a misplaced secret.
func (d decoder) addTypeProblem(n ast.Node, key, want string) {
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
	pos := positionOf(n)
	if pos == (position{}) {
		pos = d.positions[key]
	}
	d.addAt(pos, key, "expected %s, got %s", want, got)
}

func positionOf(n ast.Node) position {
	switch m := n.(type) {
	case nil:
		return position{}
	case *ast.MappingNode: // the node's own token is a colon somewhere inside
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return positionOf(m.Values[0])
		}
	case *ast.MappingValueNode:
		return positionOf(m.Key)
	}
	t := n.GetToken()
	if t == nil || t.Position == nil {
		return position{}
	}
	return position{t.Position.Line, t.Position.Column}
}

// parseKey returns the text of a mapping's key; numbers and the like count as text.
func parseKey(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// ItemKey returns the key of an item of a list; i counts from 0.
func ItemKey(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// suggestKey returns a hint with the known key nearest to name, or with the blocks that have
// the key, or with all known keys.
func suggestKey(name string, known []settings.Field) string {
	best, distance := "", 3
	var blocks []string
	all := make([]string, len(known))
	for i, f := range known {
		all[i] = f.Name
		if d := editDistance(name, f.Name); d < distance {
			best, distance = f.Name, d
		}
		if hasKey(f.Type, name) {
			blocks = append(blocks, f.Name)
		}
	}
	switch {
	case best != "":
		return "did you mean " + best + "?"
	case len(blocks) > 0:
		return "it belongs in " + strings.Join(blocks, " or ")
	}
	return "the keys here are " + strings.Join(all, ", ")
}

// hasKey reports whether t is a block with the key name.
func hasKey(t reflect.Type, name string) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct && slices.ContainsFunc(settings.Fields(t), func(f settings.Field) bool { return f.Name == name })
}

// explainUnknownKey returns the message for a key that no field has.
func explainUnknownKey(name string, known []settings.Field) string {
	for _, f := range known {
		if f.FormerName == name {
			return "was renamed to " + f.Name
		}
	}
	return "unknown key; " + suggestKey(name, known)
}

// editDistance returns the Levenshtein distance of two short words; a long one
// counts as far.
func editDistance(a, b string) int {
	if len(a) > maxQuoted {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
