package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"imapgate/internal/identity"
)

// lookupSource is the method redis: it verifies with hashes from a PasswordLookup.
type lookupSource struct {
	// Set once.
	lookUpHash PasswordLookup
	// histogram has its own lock.
	histogram histogram
}

// lookUp implements passwordSource. A record that cannot be parsed is ErrUnavailable.
// ErrUnknown would hand the user to the next method.
func (l *lookupSource) lookUp(ctx context.Context, u identity.User) (storedHash, error) {
	text, err := l.lookUpHash(ctx, u)
	if errors.Is(err, ErrUnknown) {
		return storedHash{}, ErrUnknown
	}
	if errors.Is(err, ErrDenied) {
		return storedHash{}, fmt.Errorf("look up password: %w", err)
	}
	if err != nil {
		return storedHash{}, fmt.Errorf("look up password: %w: %w", ErrUnavailable, err)
	}
	hash, err := parseStoredHash(text)
	if err != nil {
		return storedHash{}, fmt.Errorf("read stored password: %w: %w", ErrUnavailable, err)
	}
	l.histogram.add(hash.params)
	return hash, nil
}

// typicalParams implements passwordSource.
func (l *lookupSource) typicalParams() hashParams { return l.histogram.mostFrequent() }

const (
	// maxHistogramEntries bounds the parameter sets that a histogram distinguishes.
	maxHistogramEntries = 16
	// lookupHalveAt is the count at which a lookup's histogram halves all counts. After a
	// change of scheme the new one leads within as many logins.
	lookupHalveAt = 1 << 12
)

// histogram counts stored passwords by hash parameters. The zero histogram is empty.
type histogram struct {
	// Set once.
	halveAt int // count at which all are halved; 0: never

	mu sync.Mutex
	// Guarded by mu.
	counts map[hashParams]int // bound: maxHistogramEntries
}

// add counts one password.
func (h *histogram) add(p hashParams) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = make(map[hashParams]int, maxHistogramEntries)
	}
	if _, known := h.counts[p]; !known && len(h.counts) >= maxHistogramEntries {
		delete(h.counts, slices.MinFunc(slices.Collect(maps.Keys(h.counts)), h.compareCounts))
	}
	h.counts[p]++
	if h.counts[p] == h.halveAt {
		for p := range h.counts {
			h.counts[p] /= 2
		}
	}
}

// mostFrequent returns the most frequent parameters; zero if there are none.
func (h *histogram) mostFrequent() hashParams {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.counts) == 0 {
		return hashParams{}
	}
	return slices.MaxFunc(slices.Collect(maps.Keys(h.counts)), h.compareCounts)
}

// compareCounts orders parameters by count; the caller holds mu. Ties are broken by name and
// costs, so that the result does not depend on the map's order.
func (h *histogram) compareCounts(a, b hashParams) int {
	return cmp.Or(
		cmp.Compare(h.counts[a], h.counts[b]),
		strings.Compare(a.scheme.name, b.scheme.name),
		slices.Compare(a.costs[:], b.costs[:]),
	)
}
