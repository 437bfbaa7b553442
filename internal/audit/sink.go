package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// sink is where the records go: a file, a FIFO, a device, or standard output.
type sink struct {
	// Set once.
	file    *os.File
	regular bool // it can be synced, and rotated
	shared  bool // standard output: not ours to close
}

// openSink opens path for appending. O_NONBLOCK keeps a FIFO without a reader
// from holding us up, and lets write have a deadline.
func openSink(path string) (*sink, error) {
	if path == "-" {
		return &sink{file: os.Stdout, shared: true}, nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	s := &sink{file: file, regular: info.Mode().IsRegular()}
	if err := s.endTornLine(path, info.Size()); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("end the unfinished line in %s: %w", path, err)
	}
	return s, nil
}

// endTornLine begins a new line when a killed process left an unfinished one.
func (s *sink) endTornLine(path string, size int64) error {
	if !s.regular || size == 0 {
		return nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil // may be written only: then readers must cope
	}
	if err != nil {
		return err
	}
	defer file.Close()
	var last [1]byte
	if _, err := file.ReadAt(last[:], size-1); err != nil {
		return err
	}
	if last[0] != '\n' {
		_, err = s.file.Write([]byte{'\n'})
	}
	return err
}

// write has a deadline where the file can have one: a FIFO, whose reader may
// have stopped. A regular file answers or fails by itself.
func (s *sink) write(b []byte) (int, error) {
	_ = s.file.SetWriteDeadline(time.Now().Add(closeWait))
	return s.file.Write(b)
}

func (s *sink) sync() error {
	if !s.regular {
		return nil
	}
	return s.file.Sync()
}

// moved says whether path no longer leads to this file.
func (s *sink) moved(path string) bool {
	if !s.regular {
		return false
	}
	there, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		return false
	}
	here, err := s.file.Stat()
	return err == nil && !os.SameFile(here, there)
}

func (s *sink) close() error {
	if s.shared {
		return nil
	}
	return s.file.Close()
}
