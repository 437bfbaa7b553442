package listen

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"imapgate/internal/keepalive"
)

// control allows other processes to listen on the address too, and applies
// keepalive.Control.
func control(network, address string, raw syscall.RawConn) error {
	var sockErr error
	err := raw.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, sockErr, keepalive.Control(network, address, raw))
}

// IsShared reports whether more than one socket of this network namespace listens on an
// address. It returns an error if that cannot be determined.
func IsShared(addr net.Addr) (bool, error) {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return false, fmt.Errorf("%v is not a TCP address", addr)
	}
	// /proc/net does not exist under systemd's ProcSubset=pid.
	table := "/proc/self/net/tcp6"
	addrPort := netip.AddrPortFrom(tcp.AddrPort().Addr().Unmap().WithZone(""), tcp.AddrPort().Port())
	if addrPort.Addr().Is4() {
		table = "/proc/self/net/tcp"
	}
	f, err := os.Open(table)
	if err != nil {
		return false, err
	}
	defer f.Close() // read only
	n, err := countListeners(f, addrPort)
	return n > 1, err
}

// countListeners counts the sockets that listen on an address in a table in the format of
// proc(5), /proc/net/tcp. Listening sockets come before all connections.
func countListeners(table io.Reader, addr netip.AddrPort) (n int, err error) {
	const stateListen = "0A" // of include/net/tcp_states.h
	lines := bufio.NewScanner(table)
	lines.Scan() // heading
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != stateListen {
			break
		}
		if local, err := parseAddress(fields[1]); err != nil {
			return 0, err
		} else if local == addr {
			n++
		}
	}
	return n, lines.Err()
}

// parseAddress parses an address such as 0100007F:03E1: 32-bit words in native byte order,
// and a port.
func parseAddress(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	n, portErr := strconv.ParseUint(port, 16, 16)
	if err = errors.Join(err, portErr); err == nil && len(b)%4 != 0 {
		err = errors.New("not a multiple of 4 bytes")
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q: %w", text, err)
	}
	for word := range slices.Chunk(b, 4) {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	ip, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(ip, uint16(n)), nil
}
