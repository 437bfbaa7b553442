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

// exemptTests are the functions of tests that may do what tests may not, and why.
// Constant.
var exemptTests = map[string]string{}

// seededFunctions are the functions of math/rand that take their randomness from a seed.
// Constant.
var seededFunctions = []string{"New", "NewPCG", "NewChaCha8", "NewSource", "NewZipf"}

// checkDeterminism gives what the tests of r do that may end otherwise the next time: draw
// from the clock or from an unknown seed, sleep, or bound a time from above. Bubbles of
// testing/synctest have a clock of their own: functions that run one may do the last,
// and files in which one runs may sleep.
func checkDeterminism(p goPackage) (violations []string, err error) {
	files := token.NewFileSet()
	for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles, p.IgnoredGoFiles) {
		if !strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		filePath := strings.TrimPrefix(p.ImportPath, module) + "/" + name
		for _, d := range f.Decls {
			c := &inspector{randName: importName(f, "math/rand", "math/rand/v2"), maySleep: importName(f, "testing/synctest") != ""}
			if function, ok := d.(*ast.FuncDecl); ok {
				c.function = function.Name.Name
			}
			if exemptTests[filePath+" "+c.function] == "" {
				for _, found := range c.inspectDecl(d) {
					violations = append(violations, fmt.Sprintf("%s:%d: %s", filePath, files.Position(found.pos).Line, found.message))
				}
			}
		}
	}
	return violations, nil
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

// inspector is what one declaration leaves to chance.
type inspector struct {
	// Set once.
	randName string // the name of math/rand in its file
	function string // its own
	maySleep bool   // it may

	// Owned by of.
	elapsedVars  map[string]bool // variables that hold what time.Since has returned
	findings     []finding
	timeBounds   []finding // those that a bubble may have
	usesSynctest bool      // it calls synctest.Test
}

// finding is one place, and what is wrong there.
type finding struct {
	pos     token.Pos
	message string
}

func (c *inspector) inspectDecl(d ast.Decl) []finding {
	c.elapsedVars = map[string]bool{}
	ast.Inspect(d, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			c.inspectCall(n)
		case *ast.AssignStmt:
			for i, value := range n.Rhs {
				if name, ok := n.Lhs[i].(*ast.Ident); ok && len(n.Lhs) == len(n.Rhs) {
					c.elapsedVars[name.Name] = isCall(value, "time", "Since")
				}
			}
		case *ast.BinaryExpr:
			above, below := n.Op == token.GTR || n.Op == token.GEQ, n.Op == token.LSS || n.Op == token.LEQ
			if above && c.isElapsed(n.X) || below && c.isElapsed(n.Y) {
				c.timeBounds = append(c.timeBounds, finding{n.OpPos, "an upper bound of a time: count instead, or use testing/synctest"})
			}
		}
		return true
	})
	if c.usesSynctest {
		return c.findings
	}
	return append(c.findings, c.timeBounds...)
}

func (c *inspector) inspectCall(n *ast.CallExpr) {
	s, ok := n.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	from, _ := s.X.(*ast.Ident)
	switch {
	case s.Sel.Name == "UnixNano" && isCall(s.X, "time", "Now"):
		c.findings = append(c.findings, finding{n.Pos(), "a seed from the clock: use testbed.Seed"})
	case from == nil:
	case from.Name == "synctest":
		c.usesSynctest = true
	case from.Name == "time" && s.Sel.Name == "Sleep" && !c.maySleep:
		c.findings = append(c.findings, finding{n.Pos(), "time.Sleep: wait for something, as testbed.Eventually does"})
	case c.randName != "" && from.Name == c.randName && ast.IsExported(s.Sel.Name) && !slices.Contains(seededFunctions, s.Sel.Name):
		c.findings = append(c.findings, finding{n.Pos(), "math/rand without a seed: use rand.New and testbed.Seed"})
	}
}

// isElapsed says whether e is what time.Since returns, or has returned.
func (c *inspector) isElapsed(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && c.elapsedVars[name.Name] || isCall(e, "time", "Since")
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
