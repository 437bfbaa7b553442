package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// file is a sink: a file, a FIFO, a device, or standard output. Several processes
// may write one chain, as when a gateway is started beside one that drains: each has
// the lock for one write, and goes on behind what the others have written.
type file struct {
	// Set once.
	path   string // "" is standard output
	log    *zap.Logger
	chain  *chain // nil: records are not chained
	guard  *guard // of a chain; nil: it has no other writer
	shared bool   // standard output: not ours to close

	// Owned by the outlet's run.
	f        *os.File
	regular  bool   // it can be synced, and rotated
	dirty    bool   // written since the last sync
	stuck    bool   // it was said that a new file cannot be opened
	unlocked bool   // the lock could not be had; it was said
	torn     int    // bytes of the next record that the file has already
	size     int64  // of a chained file, behind what we wrote last
	linked   []byte // records with their links
	opening  []byte // the first record of a chained file, until it is in there
	opened   chain  // the chain behind that record
}

func standardOutput() *file { return &file{f: os.Stdout, shared: true} }

// openFile opens path for appending.
func openFile(path string, chained bool, log *zap.Logger) (*file, error) {
	s := &file{path: path, log: log}
	if chained {
		s.chain = &chain{}
		s.openGuard()
	}
	s.lock()
	defer s.release()
	if err := s.open(); err != nil {
		s.closeGuard()
		return nil, err
	}
	return s, nil
}

// openGuard is for a path that leads, or will lead, to a regular file.
func (s *file) openGuard() {
	if info, err := os.Stat(s.path); err == nil && !info.Mode().IsRegular() {
		return
	}
	var err error
	if s.guard, err = openGuard(s.path); err != nil {
		s.log.Warn("the chain has no lock: no other gateway may write this audit log", zap.String("file", s.path), zap.Error(err))
	}
}

// open opens what is at the path now. When it cannot be used, s stays as it is.
func (s *file) open() error {
	f, readable, err := s.openPath()
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() && readable {
		err = s.resume(f, info)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	s.f, s.regular, s.dirty, s.torn = f, info.Mode().IsRegular(), false, 0
	return nil
}

// openPath opens the path, for reading too if it is a regular file; one that may only
// be written has readers who must cope with an unfinished line, and no chain.
// O_NONBLOCK keeps a FIFO without a reader from holding us up, and lets write have a
// deadline.
func (s *file) openPath() (f *os.File, readable bool, err error) {
	const how = os.O_APPEND | os.O_CREATE | syscall.O_NONBLOCK
	if info, err := os.Stat(s.path); err != nil || info.Mode().IsRegular() {
		f, err := os.OpenFile(s.path, os.O_RDWR|how, 0o600)
		if err == nil || s.chain != nil || !errors.Is(err, fs.ErrPermission) {
			return f, true, err
		}
	}
	f, err = os.OpenFile(s.path, os.O_WRONLY|how, 0o600)
	return f, false, err
}

// resume ends the line that a killed process left unfinished, and goes on with
// the chain of the file, or begins one.
func (s *file) resume(f *os.File, info os.FileInfo) error {
	end := make([]byte, min(info.Size(), 4*maxRecord)) // holds a whole record for sure
	if _, err := f.ReadAt(end, info.Size()-int64(len(end))); err != nil {
		return err
	}
	ended, err := endLine(f, end)
	if err != nil {
		return fmt.Errorf("end the unfinished line in %s: %w", s.path, err)
	}
	s.size = info.Size() + ended
	s.opening = nil
	others := s.reached()
	switch {
	case s.chain == nil:
	case others.file == idOf(info) && others.size == info.Size():
		*s.chain = others.chain
	case !s.chain.follow(end):
		if others.chain.seq > s.chain.seq {
			*s.chain = others.chain
		}
		// Written with the next record: a full disk must not keep us in the old
		// file, whose blocks are free when it is closed.
		s.opening, s.opened = s.chain.opening()
	}
	return nil
}

// endLine ends the line at the end of a file, if it is not, and says by how many bytes.
func endLine(f *os.File, end []byte) (int64, error) {
	if len(end) == 0 || end[len(end)-1] == '\n' {
		return 0, nil
	}
	n, err := f.Write([]byte{'\n'})
	return int64(n), err
}

// acquire makes a chained file ours for one write, with all in it that others have
// written. One that was moved away is left, before anybody goes on in the new one
// from a record that is not the old one's last.
func (s *file) acquire() error {
	s.lock()
	if err := s.catchUp(); err != nil {
		s.release()
		return err
	}
	if s.moved() {
		s.replace()
	}
	return nil
}

// unlockedWait is how long the lock is waited for when it could not be had before.
const unlockedWait = 100 * time.Millisecond

// lock waits for the lock; a process that has stopped with it keeps nobody from
// writing, and then the chain may show it.
func (s *file) lock() {
	if s.guard == nil {
		return
	}
	wait := sinkWait
	if s.unlocked {
		wait = unlockedWait
	}
	had := s.guard.lock(wait)
	if !had && !s.unlocked {
		s.log.Warn("another process keeps the audit log locked, and it is written without the lock", zap.String("lock", guardPath(s.path)))
	}
	s.unlocked = !had
}

// release tells the others how far the chain has got, and lets them write.
func (s *file) release() {
	if s.guard == nil || s.unlocked {
		return
	}
	if s.f != nil && s.regular && s.opening == nil {
		if info, err := s.f.Stat(); err == nil && info.Size() == s.size {
			_ = s.guard.store(reached{idOf(info), s.size, *s.chain}) // else they do not follow us, and a Verifier finds it
		}
	}
	s.guard.unlock()
}

// reached is how far all writers of the chain have got; the zero value where nobody says.
func (s *file) reached() reached {
	if s.guard == nil || s.unlocked {
		return reached{}
	}
	return s.guard.load()
}

// catchUp goes on behind the records that others have written since we last wrote.
// What somebody else has done to the file is left to be found by a Verifier.
func (s *file) catchUp() error {
	info, err := s.f.Stat()
	if err != nil || info.Size() == s.size {
		return err
	}
	s.torn = 0
	if others := s.reached(); others.chain.seq > s.chain.seq {
		*s.chain, s.opening = others.chain, nil
	}
	var last [1]byte
	if _, err := s.f.ReadAt(last[:], info.Size()-1); err != nil && info.Size() > 0 {
		return err
	}
	ended, err := endLine(s.f, last[:min(info.Size(), 1)])
	s.size = info.Size() + ended
	return err
}

func (s *file) write(lines []byte) (int, error) {
	if s.chain == nil || !s.regular {
		return s.put(lines)
	}
	if err := s.acquire(); err != nil {
		return 0, err
	}
	defer s.release()
	before := *s.chain
	s.linked = append(s.linked[:0], s.opening...)
	if s.opening != nil {
		*s.chain = s.opened
	}
	s.linked = s.chain.link(s.linked, lines)
	n, err := s.put(s.linked)
	records := bytes.Count(s.linked[:n], []byte{'\n'})
	all := n == len(s.linked)
	if cap(s.linked) > keepBuffer {
		s.linked = nil
	}
	if all {
		s.opening = nil
		return len(lines), err
	}
	*s.chain = before
	return s.relink(lines, records), err
}

// relink leaves in the chain only the records that are in the file, and gives
// their length without links.
func (s *file) relink(lines []byte, records int) int {
	if s.opening != nil && records > 0 {
		*s.chain = s.opened
		s.opening = nil
		records--
	}
	n := firstLines(lines, records)
	s.chain.link(nil, lines[:n])
	return n
}

// put writes the lines, going on where the first of them was torn, and gives
// the length of those that are whole in the file. It has a deadline where the
// file can have one: a FIFO, whose reader may have stopped. A regular file
// answers or fails by itself.
func (s *file) put(lines []byte) (int, error) {
	_ = s.f.SetWriteDeadline(time.Now().Add(sinkWait))
	n, err := s.f.Write(lines[s.torn:])
	s.dirty = s.dirty || n > 0
	s.size += int64(n)
	n += s.torn
	whole := bytes.LastIndexByte(lines[:n], '\n') + 1
	s.torn = n - whole
	return whole, err
}

// firstLines is the length of the first n lines.
func firstLines(lines []byte, n int) int {
	length := 0
	for ; n > 0; n-- {
		length += bytes.IndexByte(lines[length:], '\n') + 1
	}
	return length
}

// tend goes on in a new file when the path leads to another, and makes what was
// written durable.
func (s *file) tend() error {
	if err := s.sync(); err != nil {
		return err
	}
	switch {
	case !s.moved():
	case s.chain != nil && s.regular:
		if err := s.acquire(); err != nil {
			return err
		}
		s.release()
	default:
		s.replace()
	}
	return nil
}

// replace goes on in what is at the path now, if it can be opened.
func (s *file) replace() {
	old := s.f
	if err := s.open(); err != nil {
		if !s.stuck {
			s.log.Error("audit log was moved away and the new file cannot be opened; the old one stays in use", zap.Error(err))
		}
		s.stuck = true
		return
	}
	s.stuck = false
	_ = old.Sync() // of a FIFO it fails
	_ = old.Close()
}

func (s *file) sync() error {
	if !s.regular || !s.dirty {
		return nil
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	s.dirty = false
	return nil
}

// moved says whether the path no longer leads to this file. A FIFO that is gone
// may come back: only its maker can make another.
func (s *file) moved() bool {
	if s.shared {
		return false
	}
	there, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s.regular
	}
	if err != nil {
		return false
	}
	here, err := s.f.Stat()
	return err == nil && !os.SameFile(here, there)
}

func (s *file) close() error {
	if s.shared {
		return nil
	}
	s.closeGuard()
	return s.f.Close()
}

func (s *file) closeGuard() {
	if s.guard != nil {
		_ = s.guard.f.Close()
	}
}
