package limit

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

// memory is what is live in the heap, and what the process has of the machine's.
func memory() (live, resident int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	resident = int64(m.Sys - m.HeapReleased)
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(statm)); len(f) > 1 {
			if pages, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				resident = pages * int64(os.Getpagesize())
			}
		}
	}
	return int64(m.HeapAlloc), resident
}
