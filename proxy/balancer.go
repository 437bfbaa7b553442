package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/pires/go-proxyproto"
)

// Bounds of a PROXY header: version 1 has its own, version 2 is 16 bytes and
// what they announce, of which a client's certificate is the longest.
const (
	maxProxyLine   = 107
	proxyPreamble  = 16
	maxProxyHeader = proxyPreamble + 4<<10
)

var (
	errProxyLength   = errors.New("PROXY header is longer than any")
	errNoProxyHeader = errors.New("not a byte of a PROXY header")
	errProxyChecksum = errors.New("PROXY header has a wrong checksum")
)

// readProxyHeader reads a header of version 1 or 2 and nothing behind it. The
// library wants all of it in one segment, which TCP does not promise.
func readProxyHeader(r *bufio.Reader) (*proxyproto.Header, error) {
	raw, err := proxyBytes(r)
	if err != nil {
		return nil, err
	}
	header, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)))
	if err != nil {
		return nil, err
	}
	if _, err := header.TLVs(); err != nil { // their lengths add up
		return nil, err
	}
	if err := checkProxySum(raw, header); err != nil {
		return nil, err
	}
	_, err = r.Discard(len(raw))
	return header, err
}

// proxyBytes is the header at the beginning of r, whole and not yet taken.
func proxyBytes(r *bufio.Reader) ([]byte, error) {
	first, err := r.Peek(1)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNoProxyHeader, err)
	case first[0] == proxyproto.SIGV1[0]:
		return proxyLine(r)
	case first[0] != proxyproto.SIGV2[0]:
		return nil, proxyproto.ErrNoProxyProtocol
	}
	preamble, err := r.Peek(proxyPreamble)
	if err != nil {
		return nil, err
	}
	size := proxyPreamble + int(binary.BigEndian.Uint16(preamble[proxyPreamble-2:]))
	if size > maxProxyHeader {
		return nil, errProxyLength
	}
	return r.Peek(size)
}

func proxyLine(r *bufio.Reader) ([]byte, error) {
	for n := 1; n <= maxProxyLine; n++ {
		line, err := r.Peek(n)
		if err != nil {
			return nil, err
		}
		if line[n-1] == '\n' {
			return line, nil
		}
	}
	return nil, errProxyLength
}

// checkProxySum checks PP2_TYPE_CRC32C where there is one: the sum over the
// header with zeros in the sum's own place. The header has been parsed.
func checkProxySum(raw []byte, header *proxyproto.Header) error {
	if header.Version != 2 || header.TransportProtocol == proxyproto.UNSPEC && header.Command == proxyproto.LOCAL {
		return nil // nothing in it counts
	}
	addresses := [...]int{0, 12, 36, 216} // bytes, by family
	for at := proxyPreamble + addresses[raw[13]>>4]; at < len(raw); {
		kind, size := raw[at], int(binary.BigEndian.Uint16(raw[at+1:]))
		value := raw[at+3 : at+3+size]
		at += 3 + size
		if kind != byte(proxyproto.PP2_TYPE_CRC32C) {
			continue
		}
		if size != 4 {
			return errProxyChecksum
		}
		zeroed := bytes.Clone(raw)
		clear(zeroed[at-4 : at])
		if crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(value) {
			return errProxyChecksum
		}
	}
	return nil
}
