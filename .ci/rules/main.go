// Command rules checks the project's own rules: the imports between packages, the length
// of functions and files, and the determinism of tests.
//
// It uses `go list` and the Go parser, prints every violation, and exits with 1 if there
// is one. Tests may have any length, and may also import the test packages.
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
	testPackages = "internal/testkit internal/testbed internal/testbed/openid internal/faultproxy"
)

// sharedPackages may be imported by all packages. Constant.
var sharedPackages = []string{"internal/identity", "internal/event", "internal/sleep", "internal/sanitize"}

// allowedImports lists the packages that each package may import, besides
// sharedPackages. "*" allows all packages. A package without an entry is a violation.
// Constant.
var allowedImports = map[string]string{
	"auth":                    "internal/filewatch internal/plainfile",
	"auth/authhttp":           "internal/breaker tlsconf",
	"auth/oauth":              "internal/breaker tlsconf",
	"internal/breaker":        "",
	"routing":                 "internal/breaker internal/plainfile tlsconf",
	"tlsconf":                 "internal/plainfile",
	"internal/audit":          "tlsconf",
	"internal/keepalive":      "",
	"internal/descriptors":    "",
	"internal/duration":       "",
	"internal/identity":       "",
	"internal/event":          "",
	"internal/imap":           "",
	"internal/cluster":        "internal/breaker internal/limit/counter internal/limit/penalty internal/limit/ban",
	"internal/limit":          "internal/cluster internal/limit/counter internal/limit/penalty internal/limit/ban",
	"internal/limit/counter":  "",
	"internal/limit/penalty":  "",
	"internal/limit/ban":      "",
	"internal/listen":         "internal/keepalive",
	"internal/logaggregator":  "",
	"internal/metrics":        "",
	"internal/plainfile":      "",
	"internal/sanitize":       "",
	"internal/sleep":          "",
	"internal/peerbench":      "", // a program that measures proxies from the outside
	"internal/settings":       "internal/duration",
	"internal/testkit":        "",
	"internal/testbed":        "internal/testkit internal/settings",
	"internal/testbed/openid": "internal/testbed",
	"internal/faultproxy":     "internal/testbed",
	"internal/filewatch":      "",
	"internal/parking":        "",
	"internal/meter":          "",
	"proxy/relay":             "internal/meter",
	"proxy/relay/splice":      "proxy/relay internal/parking",
	"proxy/upstream":          "auth internal/meter internal/breaker internal/imap internal/keepalive internal/descriptors tlsconf",
	"proxy/relay/mux":         "proxy/relay proxy/relay/splice proxy/relay/mux/command proxy/relay/mux/lease proxy/relay/mux/mailbox proxy/relay/mux/pool proxy/relay/mux/wire proxy/upstream routing internal/imap internal/audit internal/metrics internal/parking",
	"proxy/relay/mux/wire":    "proxy/relay internal/imap internal/parking",
	"proxy/relay/mux/command": "internal/imap",
	"proxy/relay/mux/mailbox": "internal/imap",
	"proxy/relay/mux/lease":   "proxy/relay/mux/wire proxy/upstream internal/imap internal/parking",
	"proxy/relay/mux/pool":    "proxy/relay/mux/lease proxy/relay/mux/wire proxy/upstream internal/imap internal/parking",
	"proxy/login":             "proxy/relay/mux proxy/relay/mux/pool proxy/upstream auth routing internal/imap internal/audit internal/metrics internal/limit internal/logaggregator",
	"proxy":                   "proxy/relay proxy/relay/splice proxy/relay/mux proxy/login proxy/upstream auth routing tlsconf internal/imap internal/audit internal/descriptors internal/metrics internal/limit internal/listen internal/logaggregator internal/parking",
	"internal/fleet":          "internal/breaker internal/plainfile",
	"internal/admin":          "internal/admin/api internal/admin/legacy internal/audit internal/listen tlsconf internal/plainfile",
	"internal/admin/api":      "",
	"internal/admin/client":   "internal/admin/api",
	"internal/admin/legacy":   "internal/duration proxy routing",
	"internal/config":         "auth auth/oauth auth/authhttp routing tlsconf proxy proxy/relay/mux proxy/relay/mux/pool proxy/upstream internal/admin internal/audit internal/duration internal/fleet internal/limit internal/plainfile internal/settings",
	"internal/gateway":        "*",
	"cmd/imapgate":            "internal/gateway internal/admin internal/admin/api internal/admin/client internal/admin/legacy internal/audit internal/config internal/duration internal/plainfile auth proxy routing tlsconf",
	"tests":                   "",
	"tests/model":             "",
}

// longFunctions lists the functions that may be longer: flat switches and tables that
// would not improve if they were split. Constant.
var longFunctions = map[string]string{}

// goPackage is a package in the output of go list.
type goPackage struct {
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
	packages, err := listPackages()
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(2)
	}
	var violations []string
	for _, p := range packages {
		violations = append(violations, checkImports(p)...)
		for _, check := range []func(goPackage) ([]string, error){checkSizes, checkDeterminism, checkWords} {
			found, err := check(p)
			if err != nil {
				fmt.Fprintln(os.Stderr, "rules:", err)
				os.Exit(2)
			}
			violations = append(violations, found...)
		}
	}
	for _, v := range violations {
		fmt.Println(v)
	}
	if len(violations) > 0 {
		os.Exit(1)
	}
	fmt.Printf("rules: %d packages have allowed imports and sizes, and deterministic tests\n", len(packages))
}

// listPackages returns all packages of the module.
func listPackages() ([]goPackage, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var packages []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, p)
	}
}

// checkImports returns the imports of p that allowedImports does not list.
func checkImports(p goPackage) (violations []string) {
	name := strings.TrimPrefix(p.ImportPath, module)
	allowed, known := allowedImports[name]
	if !known {
		return []string{name + ": this package has no entry in allowedImports in .ci/rules"}
	}
	for _, path := range p.Imports {
		imported, isOurs := strings.CutPrefix(path, module)
		switch {
		case !isOurs || slices.Contains(sharedPackages, imported):
		case slices.Contains(strings.Fields(testPackages), imported) && !slices.Contains(strings.Fields(testPackages), name):
			violations = append(violations, fmt.Sprintf("%s imports %s, which is only for tests", name, imported))
		case imported == "internal/config" && name != "internal/gateway" && !strings.HasPrefix(name, "cmd/"):
			violations = append(violations, name+" imports internal/config: only internal/gateway and cmd do")
		case allowed != "*" && !slices.Contains(strings.Fields(allowed), imported):
			violations = append(violations, fmt.Sprintf("%s imports %s: allowedImports does not list it", name, imported))
		}
	}
	return violations
}

// checkSizes returns the files and functions of p that are too long, including files for
// other systems.
func checkSizes(p goPackage) (violations []string, err error) {
	files := token.NewFileSet()
	for _, name := range append(p.GoFiles, p.IgnoredGoFiles...) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		filePath := strings.TrimPrefix(p.ImportPath, module) + "/" + name
		if n := files.Position(f.FileEnd).Line; n > maxFile {
			violations = append(violations, fmt.Sprintf("%s has %d lines, more than %d", filePath, n, maxFile))
		}
		for _, d := range f.Decls {
			function, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			lines := files.Position(function.End()).Line - files.Position(function.Pos()).Line + 1
			if _, isExempt := longFunctions[filePath+" "+function.Name.Name]; lines > maxFunction && !isExempt {
				violations = append(violations, fmt.Sprintf("%s: %s has %d lines, more than %d", filePath, function.Name.Name, lines, maxFunction))
			}
		}
	}
	return violations, nil
}
