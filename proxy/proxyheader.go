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
	maxProxyV1      = 107
	proxyV2Preamble = 16
	maxProxyHeader  = proxyV2Preamble + 4<<10
)

var (
	errProxyTooLong  = errors.New("PROXY header is longer than any")
	errNoProxyHeader = errors.New("not a byte of a PROXY header")
	errProxyChecksum = errors.New("PROXY header has a wrong checksum")
)

// readProxyHeader reads a header of version 1 or 2 and nothing behind it. The
// library wants all of it in one segment, which TCP does not promise.
func readProxyHeader(r *bufio.Reader) (*proxyproto.Header, error) {
	raw, err := peekProxyHeader(r)
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
	if err := checkProxyChecksum(raw, header); err != nil {
		return nil, err
	}
	_, err = r.Discard(len(raw))
	return header, err
}

// peekProxyHeader is the header at the beginning of r, whole and not yet taken.
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

// checkProxyChecksum checks PP2_TYPE_CRC32C where there is one: the sum over the
// header with zeros in the sum's own place. The header has been parsed.
func checkProxyChecksum(raw []byte, header *proxyproto.Header) error {
	if header.Version != 2 || header.TransportProtocol == proxyproto.UNSPEC && header.Command == proxyproto.LOCAL {
		return nil // nothing in it counts
	}
	addressSizes := [...]int{0, 12, 36, 216} // bytes, by family
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
