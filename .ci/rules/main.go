// Command rules holds the tree to the rules that no other tool knows: which
// room may import which, how long a function and a file may be, and what tests may
// not leave to chance.
//
// It reads what `go list` and the parser say, prints every violation, and exits
// with 1 when there is one. Tests are free in length; in imports they may also
// use the test beds.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	module       = "imapgate/"
	maxFunction  = 70
	maxFile      = 500
	forEveryone  = "internal/identity" // the vocabulary below all rooms
	onlyForTests = "internal/testbed internal/testbed/openid internal/faultproxy"
)

// doors are the rooms each room may import, besides internal/identity. Constant.
// "*" is every room. A room that is not here may import none.
var doors = map[string]string{
	"auth":                    "internal/follow internal/plainfile",
	"auth/authhttp":           "internal/breaker tlsconf",
	"auth/oauth":              "internal/breaker tlsconf",
	"internal/breaker":        "",
	"routing":                 "internal/breaker internal/plainfile tlsconf",
	"tlsconf":                 "internal/plainfile",
	"internal/audit":          "tlsconf",
	"internal/deadpeer":       "",
	"internal/descriptors":    "",
	"internal/duration":       "",
	"internal/identity":       "",
	"internal/imap":           "",
	"internal/limit":          "internal/breaker",
	"internal/listen":         "internal/deadpeer",
	"internal/metrics":        "",
	"internal/mutant":         "",
	"internal/plainfile":      "",
	"internal/peerbench":      "", // a program that measures proxies from outside
	"internal/testbed":        "internal/mutant",
	"internal/testbed/openid": "internal/testbed",
	"internal/faultproxy":     "internal/testbed",
	"internal/follow":         "",
	"internal/quiet":          "",
	"proxy/splice":            "internal/quiet",
	"proxy/upstream":          "auth routing internal/imap internal/audit internal/deadpeer internal/descriptors internal/metrics internal/limit tlsconf",
	"proxy/mux":               "proxy/mux/command proxy/mux/lease proxy/mux/pool proxy/mux/view proxy/mux/wire proxy/upstream auth routing internal/imap internal/audit internal/metrics internal/limit internal/mutant internal/quiet",
	"proxy/mux/wire":          "internal/imap internal/quiet",
	"proxy/mux/command":       "internal/imap",
	"proxy/mux/view":          "internal/imap internal/mutant",
	"proxy/mux/lease":         "proxy/mux/wire proxy/upstream internal/imap internal/mutant internal/quiet",
	"proxy/mux/pool":          "proxy/mux/lease proxy/mux/wire proxy/upstream internal/imap internal/metrics internal/mutant internal/quiet",
	"proxy":                   "proxy/splice proxy/mux proxy/mux/pool proxy/upstream auth routing tlsconf internal/imap internal/audit internal/descriptors internal/metrics internal/limit internal/listen internal/quiet",
	"internal/admin":          "internal/duration internal/listen proxy",
	"internal/config":         "auth auth/oauth auth/authhttp routing tlsconf internal/audit internal/descriptors internal/duration internal/metrics internal/limit internal/plainfile proxy proxy/mux proxy/upstream",
	"cmd/imapgate":            "*",
	"tests":                   "",
	"tests/model":             "",
}

// long are the functions that may be longer: flat switches and tables, which
// get no better in pieces. Constant.
var long = map[string]string{}

// room is a package, as go list prints it.
type room struct {
	ImportPath     string
	Dir            string
	GoFiles        []string
	IgnoredGoFiles []string
	TestGoFiles    []string
	XTestGoFiles   []string
	Imports        []string
	TestImports    []string
	XTestImports   []string
}

func main() {
	rooms, err := list()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(2)
	}
	var wrong []string
	for _, r := range rooms {
		wrong = append(wrong, edges(r)...)
		sized, err := sizes(r)
		if err != nil {
			fmt.Fprintln(os.Stderr, "rules:", err)
			os.Exit(2)
		}
		wrong = append(wrong, sized...)
		left, err := repeatable(r)
		if err != nil {
			fmt.Fprintln(os.Stderr, "rules:", err)
			os.Exit(2)
		}
		wrong = append(wrong, left...)
	}
	for _, w := range wrong {
		fmt.Println(w)
	}
	if len(wrong) > 0 {
		os.Exit(1)
	}
	fmt.Printf("rules: %d packages keep to their doors and sizes, and their tests to what repeats\n", len(rooms))
}

// list asks the Go tool for every package of the module.
func list() ([]room, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var rooms []room
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var r room
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return rooms, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		rooms = append(rooms, r)
	}
}

// edges gives the imports of r that no door leads to.
func edges(r room) (wrong []string) {
	name := strings.TrimPrefix(r.ImportPath, module)
	open, known := doors[name]
	if !known {
		return []string{name + ": this package has no entry among the doors in .ci/rules"}
	}
	for _, path := range r.Imports {
		to, own := strings.CutPrefix(path, module)
		switch {
		case !own || to == forEveryone:
		case slices.Contains(strings.Fields(onlyForTests), to) && !slices.Contains(strings.Fields(onlyForTests), name):
			wrong = append(wrong, fmt.Sprintf("%s imports %s, which is only for tests", name, to))
		case to == "internal/config" && !strings.HasPrefix(name, "cmd/"):
			wrong = append(wrong, name+" imports internal/config: only cmd does")
		case open != "*" && !slices.Contains(strings.Fields(open), to):
			wrong = append(wrong, fmt.Sprintf("%s imports %s: there is no such door", name, to))
		}
	}
	return wrong
}

// sizes gives the files and functions of r that are too long, also in files for
// other systems.
func sizes(r room) (wrong []string, err error) {
	files := token.NewFileSet()
	for _, name := range append(r.GoFiles, r.IgnoredGoFiles...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, filepath.Join(r.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		place := strings.TrimPrefix(r.ImportPath, module) + "/" + name
		if n := files.Position(f.FileEnd).Line; n > maxFile {
			wrong = append(wrong, fmt.Sprintf("%s has %d lines, more than %d", place, n, maxFile))
		}
		for _, d := range f.Decls {
			function, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := files.Position(function.End()).Line - files.Position(function.Pos()).Line + 1
			if _, excused := long[place+" "+function.Name.Name]; lines > maxFunction && !excused {
				wrong = append(wrong, fmt.Sprintf("%s: %s has %d lines, more than %d", place, function.Name.Name, lines, maxFunction))
			}
		}
	}
	return wrong, nil
}
