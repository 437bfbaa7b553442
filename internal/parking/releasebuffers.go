package parking

import (
	"bytes"
	"crypto/tls"
	"net"
	"reflect"
)

// ReleaseBuffers frees the buffers that crypto/tls keeps for reading in every idle session:
// 3.5 KB with the ClientHello, 20 KB after an upload. It also ends reading ahead.
// crypto/tls has no API for this, so the two fields are found by name and type. Fields that
// differ or hold bytes are left alone. TestReleaseBuffersFreesCryptoTLSBuffers fails if Go
// changes them.
//
// Only reads use these fields: the reading goroutine calls ReleaseBuffers between two
// reads.
func ReleaseBuffers(c net.Conn) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return
	}
	if buffered := bufferedConnOf(c); buffered != nil {
		buffered.releaseBuffers()
	}
	conn := reflect.ValueOf(t).Elem()
	for _, name := range [...]string{"rawInput", "hand"} {
		field := conn.FieldByName(name)
		if !field.IsValid() || field.Type() != reflect.TypeFor[bytes.Buffer]() {
			return
		}
		if b := (*bytes.Buffer)(field.Addr().UnsafePointer()); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
