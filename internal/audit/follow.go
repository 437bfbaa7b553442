package audit

import (
	"bytes"
	"context"
	"errors"
	"slices"
)

const (
	// maxFollowers bounds the readers that follow the log at a time.
	maxFollowers = 32
	// maxFollowed bounds the records that wait for one of them.
	maxFollowed = 1000
)

// ErrTooManyFollowers is the error of Follow if there are as many as allowed.
var ErrTooManyFollowers = errors.New("too many readers follow the events")

// Follower receives the records of a log as they are made, from Follow on. One that reads
// slowly loses records. It is not safe for concurrent use.
type Follower struct {
	// Set once.
	log   *Log
	ready chan struct{} // holds one element while there is something to read

	waiting [][]byte // Guarded by log.mu. At most maxFollowed.
	lost    int      // Guarded by log.mu. Since the last Next.
}

// Follow returns a new Follower, which the caller must Close.
func (l *Log) Follow() (*Follower, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.followers) >= maxFollowers {
		return nil, ErrTooManyFollowers
	}
	f := &Follower{log: l, ready: make(chan struct{}, 1)}
	l.followers = append(l.followers, f)
	return f, nil
}

// Close ends the Follower.
func (f *Follower) Close() {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	f.log.followers = slices.DeleteFunc(f.log.followers, func(other *Follower) bool { return other == f })
}

// offer gives the follower a record, or counts it as lost. log.mu is held.
func (f *Follower) offer(record []byte) {
	if len(f.waiting) >= maxFollowed {
		f.lost++
		return
	}
	f.waiting = append(f.waiting, bytes.Clone(record))
	select {
	case f.ready <- struct{}{}:
	default:
	}
}

// Next waits for records, each a line of JSON. lost is how many were lost since the last
// call. The error is that of ctx.
func (f *Follower) Next(ctx context.Context) (records [][]byte, lost int, err error) {
	select {
	case <-f.ready:
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	records, lost = f.waiting, f.lost
	f.waiting, f.lost = nil, 0
	return records, lost, nil
}
