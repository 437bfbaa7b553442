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
// may write one chain, as when a gateway starts while an old one drains. Each holds
// the lock for one write, and continues after the records of the others.
type file struct {
	// Set once.
	path      string // "" for standard output, which close leaves open
	log       *zap.Logger
	hashChain *chain        // nil: records are not chained
	chainLock *chainLock    // nil: no other process writes the chain
	timeout   time.Duration // of a write, and of the wait for the lock

	// Owned by the sink writer's run.
	file         *os.File
	isRegular    bool   // can be synced and rotated
	needsSync    bool   // written since the last sync
	reopenFailed bool   // the failure to open a new file has been logged
	lockFailed   bool   // the failure to acquire the lock has been logged
	partialBytes int    // bytes of the next record that are already in the file
	size         int64  // of a chained file, after our last write
	chained      []byte // records with their numbers and hashes
	firstRecord  []byte // the first record of a chained file, until it is written
	afterFirst   chain  // the chain after that record
}

// openFile opens path for appending.
func (l *Log) openFile(path string) (*file, error) {
	s := &file{path: path, log: l.log, timeout: l.fileTimeout}
	if l.cfg.Chain {
		s.hashChain = &chain{}
		if info, err := os.Stat(path); err != nil || info.Mode().IsRegular() { // it is, or will be, a regular file
			if s.chainLock, err = openChainLock(path); err != nil {
				s.log.Warn("the chain has no lock: only one gateway may write this audit log", zap.String("file", path), zap.Error(err))
			}
		}
	}
	s.acquireLock()
	defer s.releaseLock()
	if err := s.open(); err != nil {
		s.closeChainLock()
		return nil, err
	}
	return s, nil
}

// open opens the path. After an error s is unchanged.
func (f *file) open() error {
	opened, readable, err := f.openPath()
	if err != nil {
		return err
	}
	info, err := opened.Stat()
	if err == nil && info.Mode().IsRegular() && readable {
		err = f.continueFile(opened, info)
	}
	if err != nil {
		_ = opened.Close()
		return fmt.Errorf("open %s: %w", f.path, err)
	}
	f.file, f.isRegular, f.needsSync, f.partialBytes = opened, info.Mode().IsRegular(), false, 0
	return nil
}

// openPath opens the path; for reading too if it is a regular file. A file without
// read permission gets no repair of an unfinished line, and no chain. O_NONBLOCK
// keeps a FIFO without a reader from blocking, and allows a write deadline.
func (f *file) openPath() (opened *os.File, readable bool, err error) {
	const flags = os.O_APPEND | os.O_CREATE | syscall.O_NONBLOCK
	if info, err := os.Stat(f.path); err != nil || info.Mode().IsRegular() {
		opened, err := os.OpenFile(f.path, os.O_RDWR|flags, 0o600)
		if err == nil || f.hashChain != nil || !errors.Is(err, fs.ErrPermission) {
			return opened, true, err
		}
	}
	opened, err = os.OpenFile(f.path, os.O_WRONLY|flags, 0o600)
	return opened, false, err
}

// continueFile ends a line that a killed process left unfinished, and continues the
// file's chain or begins one.
func (f *file) continueFile(opened *os.File, info os.FileInfo) error {
	tail := make([]byte, min(info.Size(), 4*maxRecordBytes)) // holds at least one complete record
	if _, err := opened.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return err
	}
	added, err := terminateLine(opened, tail)
	if err != nil {
		return fmt.Errorf("end the unfinished line in %s: %w", f.path, err)
	}
	f.size = info.Size() + added
	f.firstRecord = nil
	position := f.readPosition()
	switch {
	case f.hashChain == nil:
	case position.file == fileIDOf(info) && position.size == info.Size():
		*f.hashChain = position.chain
	case !f.hashChain.restoreFrom(tail):
		if position.chain.seq > f.hashChain.seq {
			*f.hashChain = position.chain
		}
		// It is written with the next record. A full disk must not keep the old file in use:
		// its blocks are freed when it is closed.
		f.firstRecord, f.afterFirst = f.hashChain.firstRecord()
	}
	return nil
}

// terminateLine ends the last line of a file if necessary, and returns the number of
// bytes added.
func terminateLine(f *os.File, tail []byte) (int64, error) {
	if len(tail) == 0 || tail[len(tail)-1] == '\n' {
		return 0, nil
	}
	n, err := f.Write([]byte{'\n'})
	return int64(n), err
}

// acquireChain locks a chained file for one write and catches up with the records of
// others. It leaves a file that was moved away under the lock, so that no writer
// continues in the new file from a record that is not the old file's last.
func (f *file) acquireChain() error {
	f.acquireLock()
	if err := f.catchUp(); err != nil {
		f.releaseLock()
		return err
	}
	if f.wasMoved() {
		f.reopen()
	}
	return nil
}

// relockTimeout bounds the wait for the lock after a failure to acquire it.
const relockTimeout = 100 * time.Millisecond

// acquireLock waits for the lock. If a stopped process holds it, the file is written
// without the lock, and verification may then find a broken chain.
func (f *file) acquireLock() {
	if f.chainLock == nil {
		return
	}
	timeout := f.timeout
	if f.lockFailed {
		timeout = relockTimeout
	}
	acquired := f.chainLock.acquire(timeout)
	if !acquired && !f.lockFailed {
		f.log.Warn("another process holds the lock of the audit log; writing without it", zap.String("lock", chainLockPath(f.path)))
	}
	f.lockFailed = !acquired
}

// releaseLock stores the chain's position for the other writers and unlocks the
// file.
func (f *file) releaseLock() {
	if f.chainLock == nil || f.lockFailed {
		return
	}
	if f.file != nil && f.isRegular && f.firstRecord == nil {
		if info, err := f.file.Stat(); err == nil && info.Size() == f.size {
			_ = f.chainLock.writePosition(chainPosition{fileIDOf(info), f.size, *f.hashChain}) // on error they do not continue after us, and a Verifier finds it
		}
	}
	f.chainLock.release()
}

// readPosition returns the position that all writers of the chain have reached; zero
// if unknown.
func (f *file) readPosition() chainPosition {
	if f.chainLock == nil || f.lockFailed {
		return chainPosition{}
	}
	return f.chainLock.readPosition()
}

// catchUp continues after the records that other processes have written since our
// last write. Other changes of the file are left for a Verifier to find.
func (f *file) catchUp() error {
	info, err := f.file.Stat()
	if err != nil || info.Size() == f.size {
		return err
	}
	f.partialBytes = 0
	if position := f.readPosition(); position.chain.seq > f.hashChain.seq {
		*f.hashChain, f.firstRecord = position.chain, nil
	}
	var last [1]byte
	if _, err := f.file.ReadAt(last[:], info.Size()-1); err != nil && info.Size() > 0 {
		return err
	}
	added, err := terminateLine(f.file, last[:min(info.Size(), 1)])
	f.size = info.Size() + added
	return err
}

func (f *file) write(lines []byte) (int, error) {
	if f.hashChain == nil || !f.isRegular {
		return f.writeLines(lines)
	}
	if err := f.acquireChain(); err != nil {
		return 0, err
	}
	defer f.releaseLock()
	before := *f.hashChain
	f.chained = append(f.chained[:0], f.firstRecord...)
	if f.firstRecord != nil {
		*f.hashChain = f.afterFirst
	}
	f.chained = f.hashChain.appendRecords(f.chained, lines)
	n, err := f.writeLines(f.chained)
	records := bytes.Count(f.chained[:n], []byte{'\n'})
	complete := n == len(f.chained)
	if cap(f.chained) > maxKeptBuffer {
		f.chained = nil
	}
	if complete {
		f.firstRecord = nil
		return len(lines), err
	}
	*f.hashChain = before
	return f.rewindChain(lines, records), err
}

// rewindChain sets the chain to the records that are in the file, and returns the
// length of their lines without numbers and hashes.
func (f *file) rewindChain(lines []byte, records int) int {
	if f.firstRecord != nil && records > 0 {
		*f.hashChain = f.afterFirst
		f.firstRecord = nil
		records--
	}
	n := lengthOfLines(lines, records)
	f.hashChain.appendRecords(nil, lines[:n])
	return n
}

// writeLines writes the lines, continuing after the bytes of the first that the file
// already has. It returns the length of the lines that are complete in the file. It
// has a deadline if the file supports one: the reader of a FIFO may have stopped. A
// write to a regular file returns without a deadline.
func (f *file) writeLines(lines []byte) (int, error) {
	_ = f.file.SetWriteDeadline(time.Now().Add(f.timeout))
	n, err := f.file.Write(lines[f.partialBytes:])
	f.needsSync = f.needsSync || n > 0
	f.size += int64(n)
	n += f.partialBytes
	complete := bytes.LastIndexByte(lines[:n], '\n') + 1
	f.partialBytes = n - complete
	return complete, err
}

func lengthOfLines(lines []byte, n int) int {
	length := 0
	for ; n > 0; n-- {
		length += bytes.IndexByte(lines[length:], '\n') + 1
	}
	return length
}

// maintain syncs the file, and opens a new one if the path no longer leads to this
// one.
func (f *file) maintain() error {
	if f.isRegular && f.needsSync {
		if err := f.file.Sync(); err != nil {
			return err
		}
		f.needsSync = false
	}
	switch {
	case !f.wasMoved():
	case f.hashChain != nil && f.isRegular:
		if err := f.acquireChain(); err != nil {
			return err
		}
		f.releaseLock()
	default:
		f.reopen()
	}
	return nil
}

// reopen switches to the file that is at the path now, if it can be opened.
func (f *file) reopen() {
	old := f.file
	if err := f.open(); err != nil {
		if !f.reopenFailed {
			f.log.Error("audit log was moved away and the new file cannot be opened; the old one stays in use", zap.Error(err))
		}
		f.reopenFailed = true
		return
	}
	f.reopenFailed = false
	_ = old.Sync() // fails for a FIFO
	_ = old.Close()
}

// wasMoved reports whether the path no longer leads to this file. A missing FIFO
// does not count: the gateway must not put a regular file in its place.
func (f *file) wasMoved() bool {
	if f.path == "" {
		return false
	}
	atPath, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f.isRegular
	}
	if err != nil {
		return false
	}
	current, err := f.file.Stat()
	return err == nil && !os.SameFile(current, atPath)
}

func (f *file) close() error {
	if f.path == "" {
		return nil
	}
	f.closeChainLock()
	return f.file.Close()
}

func (f *file) closeChainLock() {
	if f.chainLock != nil {
		_ = f.chainLock.file.Close()
	}
}
