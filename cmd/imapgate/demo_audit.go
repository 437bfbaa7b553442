package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// tailPause is how often the audit log is looked at: soon enough for a person.
const tailPause = 100 * time.Millisecond

// auditLine is what the demo shows of a record.
type auditLine struct {
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	User    string    `json:"user"`
	Claimed string    `json:"claimed"`
	Peer    string    `json:"peer"`
	TLS     string    `json:"tls"`
	Backend string    `json:"backend"`
	Route   string    `json:"route"`
	Reason  string    `json:"reason"`
	Detail  string    `json:"detail"`
	In      *uint64   `json:"bytes_in"`
	Out     *uint64   `json:"bytes_out"`
}

// String is the record for a reader.
func (l auditLine) String() string {
	words := []string{l.Time.Local().Format("15:04:05"), fmt.Sprintf("%-18s", strings.ReplaceAll(l.Event, "_", " "))}
	add := func(format, value string) {
		if value != "" {
			words = append(words, fmt.Sprintf(format, value))
		}
	}
	add("%s", l.User+l.Claimed)
	add("at %s", l.Backend)
	add("(route from %s)", l.Route)
	add("from %s", l.Peer)
	add("%s", l.TLS)
	add("because %s", l.Reason)
	add("%s", l.Detail)
	if l.In != nil && l.Out != nil {
		words = append(words, fmt.Sprintf("%d bytes in, %d out", *l.In, *l.Out))
	}
	return strings.TrimRight(strings.Join(words, "  "), " ")
}

// tail shows the lines of the audit log as they are written.
type tail struct {
	// Set once.
	path string
	to   io.Writer
	quit chan struct{}
	done chan struct{}
}

// follow starts a tail of a file that may not exist yet.
func follow(path string, to io.Writer) *tail {
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
		fmt.Fprintln(t.to, l)
	}
}
