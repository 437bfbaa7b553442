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

// exemptTests lists test functions that checkDeterminism ignores, with the reason, under
// "file function". Constant.
var exemptTests = map[string]string{}

// seededFunctions lists the functions of math/rand that use an explicit seed. Constant.
var seededFunctions = []string{"New", "NewPCG", "NewChaCha8", "NewSource", "NewZipf"}

// checkDeterminism returns the places where tests of p may have another result next time:
// seeds from the clock, unknown seeds, sleeps, and upper bounds of a time. Bubbles of
// testing/synctest have their own clock: functions that run one may bound times, and
// files that import testing/synctest may sleep.
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

// importName returns the name under which a file imports one of the packages, or "".
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

// inspector inspects one declaration for nondeterminism.
type inspector struct {
	// Set once.
	randName string // name of math/rand in the file, or ""
	function string // name of the declared function, or ""
	maySleep bool   // the file imports testing/synctest

	// Owned by inspectDecl.
	elapsedVars  map[string]bool // variables that hold a result of time.Since
	findings     []finding
	timeBounds   []finding // findings that a bubble permits
	usesSynctest bool      // the function uses synctest
}

// finding is a violation and its place.
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
		c.findings = append(c.findings, finding{n.Pos(), "time.Sleep: wait for something, as testkit.Eventually does"})
	case c.randName != "" && from.Name == c.randName && ast.IsExported(s.Sel.Name) && !slices.Contains(seededFunctions, s.Sel.Name):
		c.findings = append(c.findings, finding{n.Pos(), "math/rand without a seed: use rand.New and testbed.Seed"})
	}
}

// isElapsed reports whether e is a result of time.Since.
func (c *inspector) isElapsed(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && c.elapsedVars[name.Name] || isCall(e, "time", "Since")
}

// isCall reports whether e calls the function of the package.
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
