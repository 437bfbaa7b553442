package plainfile

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// ErrUTF16 is a text that Windows has written in UTF-16.
var ErrUTF16 = errors.New("it is written in UTF-16; save it as UTF-8")

// byteOrderMark is U+FEFF in UTF-8, with which Windows programs begin a text.
var byteOrderMark = []byte("\xef\xbb\xbf")

// DecodeText is what an operator wrote, without the byte order mark that an editor may
// have put before it. UTF-16 is ErrUTF16: it always begins with a mark of its own.
func DecodeText(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return nil, ErrUTF16
	}
	return bytes.TrimPrefix(b, byteOrderMark), nil
}

// NewTextReader is Text for a file that is read piece by piece.
func NewTextReader(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	start, _ := buffered.Peek(len(byteOrderMark)) // a shorter file has none, and an error comes again
	rest, err := DecodeText(start)
	if err != nil {
		return nil, err
	}
	_, err = buffered.Discard(len(start) - len(rest))
	return buffered, err
}
