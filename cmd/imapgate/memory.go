package main

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// cgroupLimits are where Linux tells a process what memory it may use: version 2
// of control groups, then version 1.
var cgroupLimits = [...]string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// memoryShare of the control group's limit is for the heap, in percent. The
// collector works harder near it, before the kernel kills the process.
const memoryShare = 80

// limitMemory makes the collector respect the control group's limit, as
// GOMEMLIMIT would, unless that is set.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	for _, file := range cgroupLimits {
		if limit, ok := memoryLimit(file); ok {
			debug.SetMemoryLimit(limit / 100 * memoryShare)
			return
		}
	}
}

// memoryLimit reads a limit in bytes; "max", and more than any machine has, is
// none.
func memoryLimit(file string) (int64, bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return limit, err == nil && limit > 0 && limit < 1<<50
}
