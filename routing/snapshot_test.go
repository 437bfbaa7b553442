package routing

import (
	"os"
	"strings"
	"testing"
)

// checkFile checks what a snapshot file must and must not have.
func checkFile(t *testing.T, path, has, hasNot string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	if !strings.Contains(string(text), has) || strings.Contains(string(text), hasNot) {
		t.Errorf("the file has no %q or has %q: %s", has, hasNot, text)
	}
}
