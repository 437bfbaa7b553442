package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// clientSessions bounds the resumption cache of one backend. crypto/tls keeps
// one session per server name, so a handful is plenty.
const clientSessions = 8

// ClientConfig says whom to trust as a backend.
type ClientConfig struct {
	CA         string // PEM file of roots; "" is the system's roots
	ServerName string // the name the certificate must have
	MinVersion string // "1.2" (also "") or "1.3"
}

// Client makes the configuration for connections to one backend. The backend's
// certificate is always verified against ServerName; there is no switch to turn
// that off. The configuration is to be shared by all connections to the
// backend, so that they resume; one made again (after a reload) resumes nothing
// that was trusted under the old one.
func Client(cfg ClientConfig) (*tls.Config, error) {
	min, err := version(cfg.MinVersion)
	if err != nil {
		return nil, err
	}
	if cfg.ServerName == "" {
		return nil, errors.New("no server name to verify the backend's certificate against")
	}
	var roots *x509.CertPool // nil: the system's
	if cfg.CA != "" {
		if roots, _, err = loadPool(cfg.CA); err != nil {
			return nil, err
		}
	}
	return &tls.Config{
		MinVersion:                  min,
		RootCAs:                     roots,
		ServerName:                  cfg.ServerName,
		NextProtos:                  []string{protocol},
		ClientSessionCache:          tls.NewLRUClientSessionCache(clientSessions),
		DynamicRecordSizingDisabled: true,
	}, nil
}
