package plainfile

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// ErrUTF16 is returned for a text in UTF-16, which Windows programs write.
var ErrUTF16 = errors.New("it is written in UTF-16; save it as UTF-8")

// byteOrderMark is U+FEFF in UTF-8, which Windows programs write at the beginning of a text.
var byteOrderMark = []byte("\xef\xbb\xbf")

// DecodeText returns a text without the byte order mark that an editor may have added. The
// error is ErrUTF16 for UTF-16, which always begins with a mark.
func DecodeText(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return nil, ErrUTF16
	}
	return bytes.TrimPrefix(b, byteOrderMark), nil
}

// NewTextReader is DecodeText for a stream.
func NewTextReader(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	start, _ := buffered.Peek(len(byteOrderMark)) // a shorter file has no mark, and an error is returned again
	rest, err := DecodeText(start)
	if err != nil {
		return nil, err
	}
	_, err = buffered.Discard(len(start) - len(rest))
	return buffered, err
}
