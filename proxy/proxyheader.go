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

// Bounds of a PROXY header. Version 1 defines its own. Version 2 has a preamble of 16 bytes
// and announces the rest, of which a client's certificate is the longest part.
const (
	maxProxyV1      = 107
	proxyV2Preamble = 16
	maxProxyHeader  = proxyV2Preamble + 4<<10
)

var (
	errProxyTooLong  = errors.New("PROXY header is too long")
	errNoProxyHeader = errors.New("no PROXY header received")
	errProxyChecksum = errors.New("PROXY header has an invalid checksum")
)

// readProxyHeader reads a header of version 1 or 2 and nothing after it. The library needs
// all of it in one segment, which TCP does not guarantee.
func readProxyHeader(r *bufio.Reader) (*proxyproto.Header, error) {
	raw, err := peekProxyHeader(r)
	if err != nil {
		return nil, err
	}
	header, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(raw), len(raw)))
	if err != nil {
		return nil, err
	}
	if _, err := header.TLVs(); err != nil { // checks that their lengths add up
		return nil, err
	}
	if err := checkProxyChecksum(raw, header); err != nil {
		return nil, err
	}
	_, err = r.Discard(len(raw))
	return header, err
}

// peekProxyHeader returns the complete header at the start of r without consuming it.
func peekProxyHeader(r *bufio.Reader) ([]byte, error) {
	first, err := r.Peek(1)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNoProxyHeader, err)
	case first[0] == proxyproto.SIGV1[0]:
		return peekProxyLine(r)
	case first[0] != proxyproto.SIGV2[0]:
		return nil, proxyproto.ErrNoProxyProtocol
	}
	preamble, err := r.Peek(proxyV2Preamble)
	if err != nil {
		return nil, err
	}
	size := proxyV2Preamble + int(binary.BigEndian.Uint16(preamble[proxyV2Preamble-2:]))
	if size > maxProxyHeader {
		return nil, errProxyTooLong
	}
	return r.Peek(size)
}

func peekProxyLine(r *bufio.Reader) ([]byte, error) {
	for n := 1; n <= maxProxyV1; n++ {
		line, err := r.Peek(n)
		if err != nil {
			return nil, err
		}
		if line[n-1] == '\n' {
			return line, nil
		}
	}
	return nil, errProxyTooLong
}

// checkProxyChecksum verifies PP2_TYPE_CRC32C if present: the checksum over the header with
// zeros in the checksum field. The header has been parsed.
func checkProxyChecksum(raw []byte, header *proxyproto.Header) error {
	if header.Version != 2 || header.TransportProtocol == proxyproto.UNSPEC && header.Command == proxyproto.LOCAL {
		return nil // its contents are ignored
	}
	addressSizes := [...]int{0, 12, 36, 216} // bytes, by address family
	for offset := proxyV2Preamble + addressSizes[raw[13]>>4]; offset < len(raw); {
		tlvType, size := raw[offset], int(binary.BigEndian.Uint16(raw[offset+1:]))
		value := raw[offset+3 : offset+3+size]
		offset += 3 + size
		if tlvType != byte(proxyproto.PP2_TYPE_CRC32C) {
			continue
		}
		if size != 4 {
			return errProxyChecksum
		}
		zeroed := bytes.Clone(raw)
		clear(zeroed[offset-4 : offset])
		if crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)) != binary.BigEndian.Uint32(value) {
			return errProxyChecksum
		}
	}
	return nil
}
