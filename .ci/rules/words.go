package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
)

// bannedInComments matches words for which docs/GLOSSARY.md has better ones, and
// subjects that are no thing in the program. Constant.
var bannedInComments = regexp.MustCompile(`(?i)\b(nobody|somebody|everybody|anybody|whoever|whomever|in vain|of late|anew|how manieth|goodbyes?|farewell|lobby)\b`)

// bannedInNames holds the words that no part of an identifier may be, with the
// word to use instead. Constant.
var bannedInNames = map[string]string{
	"nobody": "none", "somebody": "the role", "whoever": "the role", "lobby": "preauth", "goodbye": "close", "farewell": "shutdown",
	"told": "reported", "owed": "pending", "owes": "pending", "heard": "received", "vouch": "verify", "vouched": "verified",
	"ghost": "expunged", "ghosts": "expunged", "stranger": "unknown", "strangers": "unknown", "vain": "failed",
	"doubtful": "suspect", "spoiled": "broken",
	"manager": "what it manages", "helper": "what it does", "util": "what it does", "utils": "what it does", "impl": "what it is",
}

// checkWords returns the comments and identifiers of a package, its tests
// included, that contain a banned word.
func checkWords(p goPackage) (violations []string, err error) {
	files := token.NewFileSet()
	for _, list := range [][]string{p.GoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles} {
		for _, name := range list {
			f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			path := strings.TrimPrefix(p.ImportPath, module) + "/" + name
			violations = append(violations, checkComments(files, f, path)...)
			violations = append(violations, checkNames(files, f, path)...)
		}
	}
	return violations, nil
}

func checkComments(files *token.FileSet, f *ast.File, path string) (violations []string) {
	for _, group := range f.Comments {
		for _, c := range group.List {
			if word := bannedInComments.FindString(c.Text); word != "" {
				line := files.Position(c.Pos()).Line
				violations = append(violations, fmt.Sprintf("%s:%d: the comment uses %q: see docs/GLOSSARY.md", path, line, word))
			}
		}
	}
	return violations
}

func checkNames(files *token.FileSet, f *ast.File, path string) (violations []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		for _, id := range declared(n) {
			for _, word := range splitName(id.Name) {
				if better, banned := bannedInNames[word]; banned {
					line := files.Position(id.Pos()).Line
					violations = append(violations, fmt.Sprintf("%s:%d: the name %s contains %q: use %s", path, line, id.Name, word, better))
				}
			}
		}
		return true
	})
	return violations
}

// declared returns the identifiers that a node declares itself.
func declared(n ast.Node) (names []*ast.Ident) {
	switch n := n.(type) {
	case *ast.FuncDecl:
		return []*ast.Ident{n.Name}
	case *ast.TypeSpec:
		return []*ast.Ident{n.Name}
	case *ast.ValueSpec:
		return n.Names
	case *ast.Field:
		return n.Names
	case *ast.AssignStmt:
		if n.Tok == token.DEFINE {
			return identifiers(n.Lhs...)
		}
	case *ast.RangeStmt:
		if n.Tok == token.DEFINE {
			return identifiers(n.Key, n.Value)
		}
	}
	return nil
}

func identifiers(of ...ast.Expr) (names []*ast.Ident) {
	for _, e := range of {
		if id, ok := e.(*ast.Ident); ok {
			names = append(names, id)
		}
	}
	return names
}

// splitName returns the words of a name in camel case, in lower case.
func splitName(name string) []string {
	var words []string
	start := 0
	runes := []rune(name)
	for i := 1; i <= len(runes); i++ {
		if i == len(runes) || startsWord(runes, i) {
			words = append(words, strings.ToLower(string(runes[start:i])))
			start = i
		}
	}
	return words
}

// startsWord reports whether a word begins at rune i, which is not the first:
// "HTTPServer" is "HTTP" and "Server".
func startsWord(runes []rune, i int) bool {
	if !unicode.IsUpper(runes[i]) {
		return false
	}
	return !unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])
}
