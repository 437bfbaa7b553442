package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"imapgate/internal/audit"
)

const (
	// eventsTimeout bounds the time that a reader of events may take for one write.
	eventsTimeout = 10 * time.Second
	// eventsPause is after how long without an event a comment shows that the connection lives.
	eventsPause = 15 * time.Second
)

// eventFilters are the parameters of a request for events, and the fields of records with
// which they are compared.
var eventFilters = []string{"user", "client", "backend", "event"}

// serveEvents sends audit records as server-sent events, from the request on. A reader that
// is too slow loses records, and gets an event lost with their number.
func (d Deps) serveEvents(w http.ResponseWriter, r *http.Request) {
	follower, err := d.Follow()
	if err != nil {
		w.Header().Set("Retry-After", "10")
		writeText(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	defer follower.Close()
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	s := &eventStream{w: w, control: control, r: r}
	// The server's time to read a request would end it.
	if control.SetReadDeadline(time.Time{}) != nil || s.write(": events from here on\n\n") != nil {
		return
	}
	for err == nil {
		err = s.sendNext(follower)
	}
}

// eventStream is one answer with events.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	r       *http.Request
}

// sendNext sends the next records, or a comment if there are none for a while.
func (s *eventStream) sendNext(follower *audit.Follower) error {
	ctx, cancel := context.WithTimeout(s.r.Context(), eventsPause)
	defer cancel()
	records, lost, err := follower.Next(ctx)
	switch {
	case s.r.Context().Err() != nil:
		return s.r.Context().Err()
	case err != nil:
		return s.write(": still here\n\n")
	}
	var out strings.Builder
	for _, record := range records {
		if name, ok := s.match(record); ok {
			fmt.Fprintf(&out, "event: %s\ndata: %s\n\n", name, strings.TrimSuffix(string(record), "\n"))
		}
	}
	if lost > 0 {
		fmt.Fprintf(&out, "event: lost\ndata: {\"records\":%d}\n\n", lost)
	}
	if out.Len() == 0 {
		return nil
	}
	return s.write(out.String())
}

// match reports whether a record is one that was asked for, and returns its event.
func (s *eventStream) match(record []byte) (name string, ok bool) {
	var fields map[string]any
	if json.Unmarshal(record, &fields) != nil {
		return "", false
	}
	query := s.r.URL.Query()
	for _, filter := range eventFilters {
		want := query.Get(filter)
		value, _ := fields[filter].(string)
		if filter == "client" && value == "" {
			value, _ = fields["peer"].(string)
		}
		if want != "" && !matchesEvent(filter, want, value) {
			return "", false
		}
	}
	name, _ = fields["event"].(string)
	return name, true
}

// matchesEvent reports whether a field has the value that is asked for: several events may be
// named, and an address matches with any port.
func matchesEvent(filter, want, value string) bool {
	switch filter {
	case "event":
		for name := range strings.SplitSeq(want, ",") {
			if name == value {
				return true
			}
		}
		return false
	case "client":
		return value == want || strings.HasPrefix(value, want+":") || strings.HasPrefix(value, "["+want+"]:")
	}
	return strings.EqualFold(value, want)
}

func (s *eventStream) write(text string) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(eventsTimeout)); err != nil {
		return err
	}
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.control.Flush()
}
