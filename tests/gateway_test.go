package tests

import (
	"testing"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
)

// directly leads to the backend itself, over implicit TLS.
func directly(backend *testbed.Dovecot) entrance {
	return func(testing.TB, string) endpoint {
		return endpoint{address: backend.TLS, tls: backend.CA.ClientTLS(testbed.DovecotName), caFile: backend.CA.File}
	}
}

// gateway leads to a gateway in front of the backend. For now that is a pipe
// which passes bytes.
func gateway(t testing.TB, backend *testbed.Dovecot) entrance {
	pipe := faultproxy.Start(t, backend.TLS)
	return func(testing.TB, string) endpoint {
		return endpoint{address: pipe.Address(), tls: backend.CA.ClientTLS(testbed.DovecotName), caFile: backend.CA.File}
	}
}
