package fleet

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"imapgate/internal/plainfile"
	"imapgate/internal/sanitize"
)

const (
	// maxStates bounds the addresses whose states are kept.
	maxStates = 10_000
	// maxStateFile bounds the file of states, in bytes.
	maxStateFile = 4 << 20
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

// states are the addresses that an operator has taken out of use.
type states struct {
	mu        sync.Mutex
	byAddress map[addressKey]AddressState // Guarded by mu. At most maxStates.
}

// validStates are the values of AddressState.State. Constant.
var validStates = []string{"", "draining", "evacuating", "disabled"}

func (f *Fleet) statesKey() string { return f.Prefix + "address_states" }

// SetAddressState records the state of an address, so that it outlasts this process. All
// gateways learn it with their next heartbeat. The caller tells them at once.
func (f *Fleet) SetAddressState(ctx context.Context, s AddressState) error {
	if !slices.Contains(validStates, s.State) || strings.Contains(s.Backend, " ") {
		return fmt.Errorf("%s is not a state of an address", sanitize.Quote(s.State))
	}
	if f.redis == nil {
		f.ApplyAddressState(s)
		if err := f.saveStates(); err != nil {
			return fmt.Errorf("%w: %w", ErrNotSaved, err)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	field := s.Backend + " " + s.Address
	var err error
	if s.State == "" {
		err = f.redis.HDel(ctx, f.statesKey(), field).Err()
	} else {
		text, _ := json.Marshal(s) // strings and a time
		err = f.redis.HSet(ctx, f.statesKey(), field, text).Err()
	}
	if err != nil {
		return fmt.Errorf("%w, and the state must be the same for all gateways: %w", ErrRedis, err)
	}
	f.ApplyAddressState(s)
	return nil
}

// ApplyAddressState takes over a state that was recorded, here or by another gateway.
func (f *Fleet) ApplyAddressState(s AddressState) {
	f.states.mu.Lock()
	old := f.states.byAddress[s.key()]
	if s.State == "" {
		delete(f.states.byAddress, s.key())
	} else if len(f.states.byAddress) < maxStates || old.State != "" {
		f.states.byAddress[s.key()] = s
	}
	f.states.mu.Unlock()
	if old.State != s.State {
		f.OnAddressState(s)
	}
}

// AddressStates returns the addresses that an operator has taken out of use, sorted.
func (f *Fleet) AddressStates() []AddressState {
	f.states.mu.Lock()
	defer f.states.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.states.byAddress), func(a, b AddressState) int {
		return cmp.Or(strings.Compare(a.Backend, b.Backend), strings.Compare(a.Address, b.Address))
	})
}

// loadStates takes over the recorded states.
func (f *Fleet) loadStates(ctx context.Context) error {
	var recorded []AddressState
	var err error
	if f.redis == nil {
		recorded, err = readStates(f.StateFile)
	} else {
		recorded, err = f.readRedisStates(ctx)
	}
	if err != nil {
		return err
	}
	known := make(map[addressKey]bool)
	for _, s := range recorded {
		known[s.key()] = true
		f.ApplyAddressState(s)
	}
	for _, s := range f.AddressStates() {
		if !known[s.key()] {
			s.State = ""
			f.ApplyAddressState(s)
		}
	}
	return nil
}

func (f *Fleet) readRedisStates(ctx context.Context) (list []AddressState, err error) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	fields, err := f.redis.HGetAll(ctx, f.statesKey()).Result()
	for field, text := range fields {
		backend, address, _ := strings.Cut(field, " ")
		var s AddressState
		if json.Unmarshal([]byte(text), &s) != nil {
			s.State = text // as redis-cli may have set it
		}
		s.Backend, s.Address, s.By = backend, address, sanitize.Line(s.By, maxText)
		if s.State != "" && slices.Contains(validStates, s.State) && len(list) < maxStates {
			list = append(list, s)
		}
	}
	return list, err
}

// readStates reads a file of states; a missing one is empty.
func readStates(path string) (list []AddressState, err error) {
	if path == "" {
		return nil, nil
	}
	file, _, err := plainfile.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxStateFile))
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list = slices.DeleteFunc(list, func(s AddressState) bool { return s.State == "" || !slices.Contains(validStates, s.State) })
	return list[:min(len(list), maxStates)], nil
}

// saveStates writes the file of states, at once: a reader sees the old or the new file.
func (f *Fleet) saveStates() error {
	if f.StateFile == "" {
		return nil
	}
	text, err := json.MarshalIndent(f.AddressStates(), "", "  ")
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(f.StateFile), ".states-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) // fails after the rename
	_, err = temporary.Write(append(text, '\n'))
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), f.StateFile)
}
