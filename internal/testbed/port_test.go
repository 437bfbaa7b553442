//go:build unix

package testbed

import (
	"net"
	"testing"
)

func TestReservedPortRefusesClientsAndAdmitsItsServer(t *testing.T) {
	t.Parallel()
	port := freePorts(t, 1)[0]
	h := reservePort(t, port)
	defer h.release()
	if conn, err := net.Dial("tcp", Loopback(port)); err == nil {
		_ = conn.Close()
		t.Error("a reserved port accepts a connection")
	}
	l, err := net.Listen("tcp", Loopback(port)) // Go sets SO_REUSEADDR
	if err != nil {
		t.Fatalf("the server does not get its port: %v", err)
	}
	_ = l.Close()
}
