package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// tailInterval is how often the audit log is looked at: soon enough for a person.
const tailInterval = 100 * time.Millisecond

// auditTailer shows the lines of the audit log as they are written.
type auditTailer struct {
	// Set once.
	path string
	to   io.Writer
	quit chan struct{}
	done chan struct{}
}

// startAuditTailer starts a tail of a file that may not exist yet.
func startAuditTailer(path string, to io.Writer) *auditTailer {
	t := &auditTailer{path: path, to: to, quit: make(chan struct{}), done: make(chan struct{})}
	go t.run()
	return t
}

// stop shows what is still unread and ends the tail. The log is closed before.
func (t *auditTailer) stop() {
	close(t.quit)
	<-t.done
}

// run is a goroutine's; it ends when stop is called.
func (t *auditTailer) run() {
	defer close(t.done)
	ticker := time.NewTicker(tailInterval)
	defer ticker.Stop()
	f, err := os.Open(t.path)
	if err != nil {
		fmt.Fprintln(t.to, "the audit log cannot be shown:", err)
		return
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var partial string // of a line whose end is not there yet
	for last := false; ; {
		chunk, err := in.ReadString('\n')
		partial += chunk
		if err == nil {
			t.printRecord(partial)
			partial = ""
			continue
		}
		if last {
			return
		}
		select {
		case <-ticker.C:
		case <-t.quit:
			last = true
		}
	}
}

func (t *auditTailer) printRecord(text string) {
	var l auditRecord
	if json.Unmarshal([]byte(text), &l) == nil {
		fmt.Fprintln(t.to, recordFormat{timeLayout: time.TimeOnly, useColour: supportsColour(t.to)}.format(&l))
	}
}
