package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"
)

// tailPause is how often the audit log is looked at: soon enough for a person.
const tailPause = 100 * time.Millisecond

// tail shows the lines of the audit log as they are written.
type tail struct {
	// Set once.
	path string
	to   io.Writer
	quit chan struct{}
	done chan struct{}
}

// startTail starts a tail of a file that may not exist yet.
func startTail(path string, to io.Writer) *tail {
	t := &tail{path: path, to: to, quit: make(chan struct{}), done: make(chan struct{})}
	go t.run()
	return t
}

// stop shows what is still unread and ends the tail. The log is closed before.
func (t *tail) stop() {
	close(t.quit)
	<-t.done
}

// run is a goroutine's; it ends when stop is called.
func (t *tail) run() {
	defer close(t.done)
	ticker := time.NewTicker(tailPause)
	defer ticker.Stop()
	f, err := os.Open(t.path)
	if err != nil {
		fmt.Fprintln(t.to, "the audit log cannot be shown:", err)
		return
	}
	defer f.Close()
	in := bufio.NewReader(f)
	var begun string // of a line whose end is not there yet
	for last := false; ; {
		piece, err := in.ReadString('\n')
		begun += piece
		if err == nil {
			t.show(begun)
			begun = ""
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

func (t *tail) show(text string) {
	var l auditLine
	if json.Unmarshal([]byte(text), &l) == nil {
		fmt.Fprintln(t.to, paint{stamp: time.TimeOnly, colour: colours(t.to)}.line(&l))
	}
}
