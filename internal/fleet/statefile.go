package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"imapgate/internal/plainfile"
	"imapgate/internal/sanitize"
)

// maxStateFile bounds the file of states, in bytes.
const maxStateFile = 4 << 20

// loadFile takes over the states in the file.
func (f *Fleet) loadFile() error {
	recorded, err := readStateFile(f.StateFile)
	if err != nil {
		return err
	}
	f.states.order.Lock()
	defer f.states.order.Unlock()
	for _, s := range recorded {
		f.change(s)
	}
	return nil
}

// changeFile takes over a state, and writes the file. Whatever is written later is newer.
func (f *Fleet) changeFile(s AddressState) error {
	f.states.order.Lock()
	defer f.states.order.Unlock()
	f.change(s)
	if f.StateFile == "" {
		return nil
	}
	if err := writeStateFile(f.StateFile, f.AddressStates()); err != nil {
		return fmt.Errorf("%w: %w", ErrNotSaved, err)
	}
	return nil
}

// readStateFile reads a file of states, which may have been changed by hand; a missing one is
// empty.
func readStateFile(path string) ([]AddressState, error) {
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
	text, err := io.ReadAll(io.LimitReader(file, maxStateFile+1))
	if err == nil && len(text) > maxStateFile {
		err = fmt.Errorf("it has more than %d bytes", maxStateFile)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	list, err := parseStateFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

func parseStateFile(text []byte) ([]AddressState, error) {
	var list []AddressState
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	if len(list) > maxStates {
		return nil, fmt.Errorf("it has more than %d addresses", maxStates)
	}
	for i := range list {
		list[i].By = sanitize.Line(list[i].By, maxText)
		if err := list[i].check(); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(list, func(s AddressState) bool { return s.State == "" }), nil
}

// writeStateFile writes the file of states.
func writeStateFile(path string, list []AddressState) error {
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	return plainfile.Replace(path, func(f *os.File) error {
		_, err := f.Write(append(text, '\n'))
		return err
	})
}
