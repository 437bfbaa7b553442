package audit

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// chainLock is shared by the processes that write one chain: a lock, and the
// position of the chain. It is a file beside the log that only their user may open.
// A reader of the log could otherwise hold its lock, and a writer could add a record
// that continues the chain.
type chainLock struct{ file *os.File }

// chainLockPath returns the path of a log's lock file, which audit.log* does not
// match.
func chainLockPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
}

// chainPosition is the position that the writers of a chain have reached.
type chainPosition struct {
	file  fileID
	size  int64 // file size after the last record
	chain chain
}

// fileID identifies an existing file.
type fileID struct{ dev, ino uint64 }

// maxLockFileBytes exceeds the size of a lock file.
const maxLockFileBytes = 256

// readPosition returns what writePosition stored, or the zero value.
func (c *chainLock) readPosition() (p chainPosition) {
	var b [maxLockFileBytes]byte
	n, _ := c.file.ReadAt(b[:], 0) // io.EOF
	var hash []byte
	text := bytes.TrimRight(b[:n], " \n")
	if _, err := fmt.Sscanf(string(text), "1 %d %d %d %d %x", &p.file.dev, &p.file.ino, &p.size, &p.chain.seq, &hash); err != nil ||
		copy(p.chain.hash[:], hash) != len(p.chain.hash) {
		return chainPosition{}
	}
	return p
}

// writePosition stores p for the other writers. If it fails, they keep their own
// position.
func (c *chainLock) writePosition(p chainPosition) error {
	text := fmt.Appendf(nil, "1 %d %d %d %d %s", p.file.dev, p.file.ino, p.size, p.chain.seq, hex.EncodeToString(p.chain.hash[:]))
	_, err := c.file.WriteAt(append(text, bytes.Repeat([]byte{' '}, maxLockFileBytes-len(text))...), 0)
	return err
}
