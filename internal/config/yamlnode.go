package config

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"imapgate/internal/settings"
)

// positionOf returns where a node begins.
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

// suggestKey returns a hint with the known key nearest to name, or with all of them.
func suggestKey(name string, known []settings.Field) string {
	best, distance := "", 3
	all := make([]string, len(known))
	for i, f := range known {
		all[i] = f.Name
		if d := editDistance(name, f.Name); d < distance {
			best, distance = f.Name, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "the keys here are " + strings.Join(all, ", ")
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
