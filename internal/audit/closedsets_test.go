package audit

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// closedSets are the types whose constants are the values of record fields.
var closedSets = []string{"Reason", "Why", "Result", "Limit", "Measure", "Cause", "Action", "CommandResult"}

// parseTree parses all files of the tree that are not tests: those of this package,
// and the others.
func parseTree(t *testing.T) (own, others []*ast.File) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(path, "/internal/metrics/") || // which lists them all
			!strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if filepath.Dir(path) == filepath.Join("..", "..", "internal", "audit") {
			own = append(own, f)
		} else {
			others = append(others, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return own, others
}

// closedSetWords returns the constants of the closed sets with their quoted values.
func closedSetWords(files []*ast.File) map[string]string {
	all := map[string]string{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if of, ok := v.Type.(*ast.Ident); ok && slices.Contains(closedSets, of.Name) {
				for i, name := range v.Names {
					if text, ok := v.Values[i].(*ast.BasicLit); ok { // the others are values of another set
						all[name.Name] = text.Value
					}
				}
			}
			return true
		})
	}
	return all
}

// Readers of the document rely on its words, so each must be in use.
func TestEveryWordOfTheClosedSetsIsUsed(t *testing.T) {
	own, others := parseTree(t)
	used := map[string]bool{}
	for _, f := range others {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "audit" {
					used[n.Sel.Name] = true
				}
			case *ast.BasicLit:
				used[n.Value] = true // another package's name for it
			}
			return true
		})
	}
	for word, text := range closedSetWords(own) {
		if !used[word] && !used[text] {
			t.Errorf("no code uses %s", word)
		}
	}
}
