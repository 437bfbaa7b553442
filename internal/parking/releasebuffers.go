package parking

import (
	"bytes"
	"crypto/tls"
	"net"
	"reflect"
)

// ReleaseBuffers gives back the buffers that crypto/tls keeps for reading: 3.5 KB with
// the client's hello still in them, 20 KB behind an upload, in every idle
// session for as long as it lives. It ends reading ahead, too. There is no public way; so this looks the
// two fields up by name and type, and leaves them alone when they are not what
// it knows, or hold bytes. TestReleaseBuffersFreesCryptoTLSBuffers tells when Go changes.
//
// Only reading touches the fields: whoever reads calls this, between two reads.
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
