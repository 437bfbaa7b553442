package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"imapgate/internal/sanitize"
)

const (
	// maxStates bounds the addresses whose states are kept.
	maxStates = 10_000
	// maxRereads bounds how often the states are read because one has changed meanwhile.
	maxRereads = 3
	// maxStateText bounds a state in Redis, in bytes.
	maxStateText = 4 << 10
	// stateUp is what Redis has for an address that was resumed. It stays there: were it
	// removed, a gateway that does not know yet would take that for a loss.
	stateUp = "up"
)

// ErrNotSaved means that a state holds, but not after a restart.
var ErrNotSaved = errors.New("the state is not kept for the next start")

// addressKey names an address of a backend.
type addressKey struct{ backend, address string }

// AddressState is what an operator has decided about an address. State is draining,
// evacuating or disabled; "" means that the address is used as its health permits.
type AddressState struct {
	Backend string    `json:"backend"`
	Address string    `json:"address"`
	State   string    `json:"state"`
	Since   time.Time `json:"since"`
	By      string    `json:"by"` // the operator
}

func (s AddressState) key() addressKey { return addressKey{s.Backend, s.Address} }

// field returns the name of the state in Redis.
func (s AddressState) field() string { return s.Backend + " " + s.Address }

// text returns the state as it is in Redis.
func (s AddressState) text() string {
	s.State = cmp.Or(s.State, stateUp)
	text, _ := json.Marshal(s) // strings and a time
	return string(text)
}

// check returns why a state cannot be kept, or nil.
func (s AddressState) check() error {
	isName := func(name string) bool {
		return name != "" && len(name) <= maxText && sanitize.Line(name, maxText) == name
	}
	switch {
	case !slices.Contains(validStates, s.State):
		return fmt.Errorf("%s is not a state of an address", sanitize.Quote(s.State))
	case !isName(s.Backend) || strings.Contains(s.Backend, " "):
		return fmt.Errorf("%s is not a name of a backend", sanitize.Quote(s.Backend))
	case !isName(s.Address):
		return fmt.Errorf("%s is not an address of a backend", sanitize.Quote(s.Address))
	}
	return nil
}

// states are the addresses that an operator has taken out of use.
type states struct {
	// order keeps changes, and the calls that report them, in one order. It is locked before
	// mu.
	order sync.Mutex

	mu        sync.Mutex
	byAddress map[addressKey]AddressState // Guarded by mu. At most maxStates.
	changes   int                         // Guarded by mu. How often byAddress has changed.
}

// validStates are the values of AddressState.State. Constant.
var validStates = []string{"", "draining", "evacuating", "disabled"}

func (f *Fleet) statesKey() string { return f.Prefix + "address_states" }

// SetAddressState records the state of an address, so that it outlasts this process. All
// gateways learn it with their next heartbeat. The caller tells them at once. While Redis is
// down nothing changes, and the error is ErrRedis. ErrNotSaved means that the state holds until
// this process ends.
func (f *Fleet) SetAddressState(ctx context.Context, s AddressState) error {
	s.By = sanitize.Line(s.By, maxText)
	if err := s.check(); err != nil {
		return err
	}
	if !f.states.hasRoom(s) {
		return fmt.Errorf("there are states of %d addresses already", maxStates)
	}
	if f.redis == nil {
		return f.changeFile(s)
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := f.redis.HSet(ctx, f.statesKey(), s.field(), s.text()).Err(); err != nil {
		return fmt.Errorf("%w, and the state must be the same for all gateways: %w", ErrRedis, err)
	}
	f.ApplyAddressState(s)
	return nil
}

// ApplyAddressState takes over a state that was recorded, here or by another gateway. One that
// is no state, as another version may send, changes nothing.
func (f *Fleet) ApplyAddressState(s AddressState) {
	f.states.order.Lock()
	f.change(s)
	f.states.order.Unlock()
	if f.redis != nil {
		f.Announce() // reads again what is recorded: orders may arrive in another order
	}
}

// change takes over a state, and reports it. states.order is held.
func (f *Fleet) change(s AddressState) {
	if s.check() == nil && f.states.set(s) {
		f.OnAddressState(s)
	}
}

// hasRoom reports whether a state can be kept.
func (l *states) hasRoom(s AddressState) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.State == "" || len(l.byAddress) < maxStates || l.byAddress[s.key()].State != ""
}

// set changes the state of an address. It reports whether that is another one now.
func (l *states) set(s AddressState) (isNew bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.byAddress[s.key()]
	switch {
	case s.State == "":
		delete(l.byAddress, s.key())
	case old.State == "" && len(l.byAddress) >= maxStates:
		return false
	default:
		l.byAddress[s.key()] = s
	}
	l.changes++
	return old.State != s.State
}

// AddressStates returns the addresses that an operator has taken out of use, sorted.
func (f *Fleet) AddressStates() []AddressState {
	f.states.mu.Lock()
	defer f.states.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.states.byAddress), func(a, b AddressState) int {
		return cmp.Or(strings.Compare(a.Backend, b.Backend), strings.Compare(a.Address, b.Address))
	})
}

// countChanges returns the number of changes so far.
func (l *states) countChanges() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// loadStates takes over the states in Redis. If Redis has lost them, it writes those that this
// gateway knows.
func (f *Fleet) loadStates(ctx context.Context) error {
	for range maxRereads {
		changes := f.states.countChanges()
		recorded, err := f.readStates(ctx)
		if err != nil {
			return err
		}
		if f.replaceStates(recorded, changes) {
			return nil
		}
	}
	return nil // the next heartbeat reads them
}

// replaceStates takes over all states, unless one has changed since there were so many changes:
// what was read may be older.
func (f *Fleet) replaceStates(recorded []AddressState, changes int) bool {
	f.states.order.Lock()
	defer f.states.order.Unlock()
	if f.states.countChanges() != changes {
		return false
	}
	known := make(map[addressKey]bool)
	for _, s := range recorded {
		known[s.key()] = true
		f.change(s)
	}
	for _, s := range f.AddressStates() {
		if !known[s.key()] {
			s.State = ""
			f.change(s)
		}
	}
	return true
}

// readStates returns the states in Redis, with those that it had lost.
func (f *Fleet) readStates(ctx context.Context) (list []AddressState, err error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	args := []any{maxStates}
	for _, s := range f.AddressStates() {
		args = append(args, s.field(), s.text())
	}
	texts, err := statesScript.Run(ctx, f.redis, []string{f.statesKey()}, args...).StringSlice()
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(texts); i += 2 {
		if s, ok := parseState(texts[i], texts[i+1]); ok {
			list = append(list, s)
		}
	}
	return list, nil
}

// parseState reads a field of the hash of states, which may be anything. It returns false for
// one that takes no address out of use.
func parseState(field, text string) (s AddressState, ok bool) {
	if len(text) > maxStateText {
		return s, false
	}
	if json.Unmarshal([]byte(text), &s) != nil {
		s = AddressState{State: text} // as redis-cli may have set it
	}
	s.Backend, s.Address, _ = strings.Cut(field, " ")
	s.By = sanitize.Line(s.By, maxText)
	return s, s.State != "" && s.check() == nil
}
