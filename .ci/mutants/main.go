// Command mutants proves that the tests notice when a safety check is left out.
//
// Each .patch file beside it removes one check. Lines before the diff name the
// tests that must fail then:
//
//	Run: [NAME=VALUE ...] PACKAGE REGEXP
//
// The patched files reach the compiler through an overlay, so the tree itself
// stays as it is. A patch that does not apply, does not build, or that a test
// does not notice is an error. Arguments are names of patches; the default is all.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// runTimeout bounds the build and the run of one test.
const runTimeout = 5 * time.Minute

// mutant is one patch.
type mutant struct {
	files []string // that it changes, relative to the module
	runs  []run
}

// run is one test that must fail with the patch.
type run struct {
	env    []string
	pkg    string
	regexp string
}

func main() {
	failed := false
	patches, err := filepath.Glob(".ci/mutants/*.patch")
	if err != nil || len(patches) == 0 {
		fmt.Fprintln(os.Stderr, "mutants: no .ci/mutants/*.patch here: run it in the module's folder")
		os.Exit(2)
	}
	for _, path := range patches {
		if wanted := os.Args[1:]; len(wanted) > 0 && !slices.Contains(wanted, nameOf(path)) {
			continue
		}
		if err := check(path); err != nil {
			fmt.Printf("mutants: %s: %v\n", nameOf(path), err)
			failed = true
			continue
		}
		fmt.Printf("mutants: %s is noticed\n", nameOf(path))
	}
	if failed {
		os.Exit(1)
	}
}

func nameOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".patch") }

// check applies one patch to copies and wants each of its tests to fail.
func check(path string) error {
	m, err := parse(path)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "imapgate-mutant-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.apply(path, dir)
	if err != nil {
		return err
	}
	for _, r := range m.runs {
		if err := r.mustFail(overlay); err != nil {
			return err
		}
	}
	return nil
}

// parse reads the head of a patch and the names of the files it changes.
func parse(path string) (mutant, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return mutant{}, err
	}
	var m mutant
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if file, ok := strings.CutPrefix(line, "+++ b/"); ok {
			m.files = append(m.files, file)
		}
		words, ok := strings.CutPrefix(line, "Run: ")
		if !ok {
			continue
		}
		w := strings.Fields(words)
		if len(w) < 2 {
			return m, fmt.Errorf("%q names no package and test", line)
		}
		m.runs = append(m.runs, run{w[:len(w)-2], w[len(w)-2], w[len(w)-1]})
	}
	if len(m.files) == 0 || len(m.runs) == 0 {
		return m, fmt.Errorf("it has no diff or no line Run")
	}
	return m, nil
}

// apply patches copies of the files below dir and returns the path of the
// overlay that go test takes.
func (m mutant) apply(path, dir string) (string, error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	replace := make(map[string]string, len(m.files))
	for _, file := range m.files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		replaced := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(replaced), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(replaced, text, 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = replaced
	}
	patch := exec.Command("git", "apply", "--recount", filepath.Join(root, path))
	patch.Dir = dir
	patch.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	if out, err := patch.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not apply: %s", out)
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o644)
}

// mustFail runs the test with the overlay and returns an error unless it fails.
func (r run) mustFail(overlay string) error {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	test := exec.CommandContext(ctx, "go", "test", "-count=1", "-overlay", overlay, "-run", r.regexp, r.pkg)
	test.Env = append(os.Environ(), r.env...)
	out, err := test.CombinedOutput()
	switch {
	case err == nil:
		return fmt.Errorf("%s %s does not notice it:\n%s", r.pkg, r.regexp, out)
	case !strings.Contains(string(out), "--- FAIL"):
		return fmt.Errorf("%s %s could not be run: %w\n%s", r.pkg, r.regexp, err, out)
	}
	return nil
}
