package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// excused are the functions of tests that may do what tests may not, and why.
// Constant.
var excused = map[string]string{}

// seeded are the functions of math/rand that take their randomness from a seed.
// Constant.
var seeded = []string{"New", "NewPCG", "NewChaCha8", "NewSource", "NewZipf"}

// repeatable gives what the tests of r do that may end otherwise the next time: draw
// from the clock or from an unknown seed, sleep, or bound a time from above. Bubbles of
// testing/synctest have a clock of their own: functions that run one may do the last,
// and files in which one runs may sleep.
func repeatable(r room) (wrong []string, err error) {
	files := token.NewFileSet()
	for _, name := range slices.Concat(r.TestGoFiles, r.XTestGoFiles, r.IgnoredGoFiles) {
		if !strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, filepath.Join(r.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		place := strings.TrimPrefix(r.ImportPath, module) + "/" + name
		for _, d := range f.Decls {
			c := &chance{random: importName(f, "math/rand", "math/rand/v2"), sleeps: importName(f, "testing/synctest") != ""}
			if function, ok := d.(*ast.FuncDecl); ok {
				c.function = function.Name.Name
			}
			if excused[place+" "+c.function] == "" {
				for _, found := range c.of(d) {
					wrong = append(wrong, fmt.Sprintf("%s:%d: %s", place, files.Position(found.at).Line, found.why))
				}
			}
		}
	}
	return wrong, nil
}

// importName is how a file calls one of these packages, or "".
func importName(f *ast.File, paths ...string) string {
	for _, i := range f.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		switch {
		case !slices.Contains(paths, path):
		case i.Name != nil:
			return i.Name.Name
		default:
			return strings.Split(strings.TrimSuffix(path, "/v2"), "/")[1]
		}
	}
	return ""
}

// chance is what one declaration leaves to chance.
type chance struct {
	// Set once.
	random   string // the name of math/rand in its file
	function string // its own
	sleeps   bool   // it may

	// Owned by of.
	spans  map[string]bool // variables that hold what time.Since has returned
	found  []finding
	timely []finding // those that a bubble may have
	bubble bool      // it calls synctest.Test
}

// finding is one place, and what is wrong there.
type finding struct {
	at  token.Pos
	why string
}

func (c *chance) of(d ast.Decl) []finding {
	c.spans = map[string]bool{}
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			c.call(n)
		case *ast.AssignStmt:
			for i, value := range n.Rhs {
				if name, ok := n.Lhs[i].(*ast.Ident); ok && len(n.Lhs) == len(n.Rhs) {
					c.spans[name.Name] = isCall(value, "time", "Since")
				}
			}
		case *ast.BinaryExpr:
			above, below := n.Op == token.GTR || n.Op == token.GEQ, n.Op == token.LSS || n.Op == token.LEQ
			if above && c.isSpan(n.X) || below && c.isSpan(n.Y) {
				c.timely = append(c.timely, finding{n.OpPos, "an upper bound of a time: count instead, or use testing/synctest"})
			}
		}
		return true
	})
	if c.bubble {
		return c.found
	}
	return append(c.found, c.timely...)
}

func (c *chance) call(n *ast.CallExpr) {
	s, ok := n.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	from, _ := s.X.(*ast.Ident)
	switch {
	case s.Sel.Name == "UnixNano" && isCall(s.X, "time", "Now"):
		c.found = append(c.found, finding{n.Pos(), "a seed from the clock: use testbed.Seed"})
	case from == nil:
	case from.Name == "synctest":
		c.bubble = true
	case from.Name == "time" && s.Sel.Name == "Sleep" && !c.sleeps:
		c.found = append(c.found, finding{n.Pos(), "time.Sleep: wait for something, as testbed.Within does"})
	case c.random != "" && from.Name == c.random && ast.IsExported(s.Sel.Name) && !slices.Contains(seeded, s.Sel.Name):
		c.found = append(c.found, finding{n.Pos(), "math/rand without a seed: use rand.New and testbed.Seed"})
	}
}

// isSpan says whether e is what time.Since returns, or has returned.
func (c *chance) isSpan(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && c.spans[name.Name] || isCall(e, "time", "Since")
}

// isCall says whether e calls this function of this package.
func isCall(e ast.Expr, from, name string) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	s, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != name {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == from
}
