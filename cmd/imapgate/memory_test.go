package main

import (
	"path/filepath"
	"testing"
)

func TestTheControlGroupsLimitIsRead(t *testing.T) {
	for text, want := range map[string]int64{"1073741824\n": 1 << 30, "max\n": 0, "9223372036854771712\n": 0, "": 0, "-1\n": 0, "x": 0} {
		got, ok := memoryLimit(write(t, "memory.max", text))
		if ok != (want > 0) || ok && got != want {
			t.Errorf("%q: %d, %v", text, got, ok)
		}
	}
	if _, ok := memoryLimit(filepath.Join(t.TempDir(), "none")); ok {
		t.Error("a file that is not there has a limit")
	}
}
