package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// tailInterval is how often the audit log is read, short enough for a person.
const tailInterval = 100 * time.Millisecond

// auditTailer prints the records of the audit log as they are written.
type auditTailer struct {
	// Set once.
	path string
	to   io.Writer
	quit chan struct{}
	done chan struct{}
}

// startAuditTailer starts to print the records of a file.
func startAuditTailer(path string, to io.Writer) *auditTailer {
	t := &auditTailer{path: path, to: to, quit: make(chan struct{}), done: make(chan struct{})}
	go t.run()
	return t
}

// stop prints the remaining records and ends the tailer. The log must be closed
// before.
func (a *auditTailer) stop() {
	close(a.quit)
	<-a.done
}

// run is the tailer's goroutine; it ends after stop.
func (a *auditTailer) run() {
	defer close(a.done)
	ticker := time.NewTicker(tailInterval)
	defer ticker.Stop()
	f, err := os.Open(a.path)
	if err != nil {
		fmt.Fprintln(a.to, "cannot read the audit log:", err)
		return
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var partial string // beginning of an incomplete line
	for last := false; ; {
		chunk, err := in.ReadString('\n')
		partial += chunk
		if err == nil {
			a.printRecord(partial)
			partial = ""
			continue
		}
		if last {
			return
		}
		select {
		case <-ticker.C:
		case <-a.quit:
			last = true
		}
	}
}

func (a *auditTailer) printRecord(text string) {
	var l auditRecord
	if json.Unmarshal([]byte(text), &l) == nil {
		fmt.Fprintln(a.to, recordFormat{timeLayout: time.TimeOnly, useColour: supportsColour(a.to)}.format(&l))
	}
}
