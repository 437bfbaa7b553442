package gateway

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/auth/authhttp"
	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/filewatch"
	"imapgate/internal/plainfile"
	"imapgate/tlsconf"
)

// watchedFiles are the files of the configuration that are watched while the gateway
// runs. They are the listeners' certificates, the TLS settings of each server that
// the gateway connects to, and secrets. Package auth watches the passwd-file.
type watchedFiles struct {
	*filewatch.Reloader

	// Set once.
	keys    fileKeys                   // of the listeners' certificates and CAs
	server  *tlsconf.Server            // nil without TLS listeners
	admin   *tlsconf.Server            // of the admin address; nil without TLS
	tokens  *admin.Tokens              // of the admin address
	clients map[string]*tlsconf.Client // by the key of the configuration block
}

// openFiles reads every file for the first time. It returns the files that it could
// open, and an error of config.WithKey for each other.
func openFiles(cfg *config.Config, log *zap.Logger) (*watchedFiles, error) {
	f := &watchedFiles{Reloader: filewatch.NewReloader(log), keys: certificateFileKeys(cfg), clients: make(map[string]*tlsconf.Client)}
	var errs []error
	if needsTLS(cfg) {
		server, err := tlsconf.NewServer(cfg.TLS, log)
		if err != nil {
			errs = append(errs, f.keys.addKeys(certificateBlockKey(cfg), err))
		} else {
			f.server = server
			f.Add("tls", server)
		}
	}
	tokens, err := admin.OpenTokens(cfg.Admin)
	if err != nil {
		errs = append(errs, config.WithKey(tokensKey, err))
	}
	f.tokens = tokens
	f.Add(tokensKey, tokens)
	if pair := cfg.Admin.TLS; pair != nil {
		server, err := tlsconf.NewServer(tlsconf.ServerSettings{MinVersion: "1.2", Certificates: []tlsconf.CertFiles{*pair}}, log)
		if err != nil {
			errs = append(errs, fileKeys{pair.Cert: adminTLSKey + ".cert", pair.Key: adminTLSKey + ".key"}.addKeys(adminTLSKey, err))
		} else {
			f.admin = server
			f.Add(adminTLSKey, server)
		}
	}
	for _, c := range clientBlocks(cfg) {
		client, err := tlsconf.NewClient(c.cfg, log)
		if err != nil {
			errs = append(errs, c.fileKeys().addKeys(c.key, err))
			continue
		}
		f.clients[c.key] = client
		f.Add(c.key, client)
	}
	for _, secret := range cfg.SecretFiles {
		f.Add(secret.Key, secret)
	}
	return f, errors.Join(errs...)
}

// clientTLS returns the TLS settings of the block with this key; nil without TLS.
func (f *watchedFiles) clientTLS(key string) func() *tls.Config {
	c := f.clients[key]
	if c == nil {
		return nil
	}
	return c.Config
}

// certificates returns the certificates that the gateway serves or presents to other
// servers.
func (f *watchedFiles) certificates() (list []tlsconf.Certificate) {
	if f.server != nil {
		list = f.server.Certificates()
	}
	for _, c := range f.clients {
		list = append(list, c.Certificates()...)
	}
	return list
}

// clientBlock has the TLS settings for the servers of one configuration block.
type clientBlock struct {
	key string
	cfg tlsconf.ClientConfig
}

const (
	redisKey    = "redis"
	authHTTPKey = "auth.http"
	oauthKey    = "auth.oauth"
)

func backendKey(name string) string { return config.MemberKey("backends", name) }
func sinkKey(i int) string          { return config.ItemKey("audit.sinks", i) }

// fileKeys returns the keys of the block's files.
func (c clientBlock) fileKeys() fileKeys {
	certBlock := c.key + ".client_certificate"
	if c.key == authHTTPKey {
		certBlock = c.key
	}
	return fileKeys{c.cfg.Certificate.Cert: certBlock + ".cert", c.cfg.Certificate.Key: certBlock + ".key", c.cfg.CA: c.key + ".ca"}
}

// clientBlocks returns the TLS settings for every server that the gateway connects
// to. Without a server name, a server is verified by the host of its address.
func clientBlocks(cfg *config.Config) (list []clientBlock) {
	add := func(key string, c tlsconf.ClientConfig) { list = append(list, clientBlock{key, c}) }
	if r := cfg.Redis; r != nil && r.TLS {
		add(redisKey, tlsconf.ClientConfig{CA: r.CA, ServerName: r.ServerName, Certificate: r.ClientCertificate.OrNone()})
	}
	if h := cfg.Auth.HTTP; slices.Contains(cfg.Auth.Methods, auth.HTTP) && slices.ContainsFunc(h.URLs, isHTTPS) {
		add(authHTTPKey, tlsconf.ClientConfig{CA: h.CA, Certificate: tlsconf.CertFiles{Cert: h.Cert, Key: h.Key}})
	}
	if o := cfg.Auth.OAuth; slices.Contains(cfg.Auth.Methods, auth.OAuth) {
		add(oauthKey, tlsconf.ClientConfig{CA: o.CA, Certificate: o.ClientCertificate.OrNone()})
	}
	for i, s := range cfg.Audit.Sinks {
		if address, ok := strings.CutPrefix(s.Address, "tls://"); ok && s.Type == audit.Syslog {
			add(sinkKey(i), tlsconf.ClientConfig{CA: s.CA, ServerName: cmp.Or(s.ServerName, hostOf(address)), Certificate: s.ClientCertificate.OrNone()})
		}
	}
	for name, b := range cfg.Backends {
		if b.TLS != event.NoTLS {
			add(backendKey(name), tlsconf.ClientConfig{CA: b.CA, ServerName: cmp.Or(b.ServerName, hostOf(b.Address)), // else the host of the address in use
				Certificate: b.ClientCertificate.OrNone(), ALPN: tlsconf.IMAP})
		}
	}
	slices.SortFunc(list, func(a, b clientBlock) int { return strings.Compare(a.key, b.key) })
	return list
}

func isHTTPS(raw string) bool {
	u, err := authhttp.ParseURL(raw)
	return err == nil && u.Scheme == "https"
}

// hostOf returns the host of an address that has been validated.
func hostOf(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

// warnings returns warnings about usable files that clients or servers may reject,
// and about bad files in the directory of certificates. The gateway starts without
// those, because a renewal may be in progress.
func (f *watchedFiles) warnings(now time.Time) error {
	var warnings []error
	if f.server != nil {
		for _, part := range config.SplitErrors(f.server.DirectoryError()) {
			warnings = append(warnings, f.keys.addKeys(directoryKey, fmt.Errorf("%w; the gateway starts without it", part)))
		}
		warnings = append(warnings, f.keys.addKeys(directoryKey, f.server.Diagnose(now)))
	}
	for _, key := range slices.Sorted(maps.Keys(f.clients)) {
		c := clientBlock{key: key, cfg: f.clients[key].Settings()}
		warnings = append(warnings, c.fileKeys().addKeys(key, f.clients[key].Diagnose(now)))
	}
	return errors.Join(warnings...)
}

// reportExpiry reports the expiry of each certificate that the gateway serves or
// presents.
func (g *Gateway) reportExpiry(report func(file string, notAfter time.Time)) {
	seen := make(map[string]bool) // several servers may get the same certificate
	for _, c := range g.files.certificates() {
		if !seen[c.File] {
			seen[c.File] = true
			report(c.File, c.NotAfter)
		}
	}
}

// fileKeys has the configuration key of each file.
type fileKeys map[string]string

// addKeys adds to errors about these files their keys, and to others the key of the
// block.
func (f fileKeys) addKeys(block string, err error) error {
	var keyed []error
	for _, part := range config.SplitErrors(err) {
		name := ""
		var file *tlsconf.FileError
		var path *fs.PathError
		switch {
		case errors.As(part, &file):
			name = file.File
		case errors.As(part, &path):
			name = path.Path
		}
		key := block
		if name != "" && f[name] != "" {
			key = f[name]
		}
		keyed = append(keyed, config.WithKey(key, part))
	}
	return errors.Join(keyed...)
}

func certificateFileKeys(cfg *config.Config) fileKeys {
	keys := fileKeys{cfg.TLS.ClientCA: "tls.client_ca"}
	for i, c := range slices.Backward(cfg.TLS.Certificates) { // the first key of a file that is named twice
		key := config.ItemKey("tls.certificates", i)
		keys[c.Key] = key + ".key"
		keys[c.Cert] = key + ".cert"
	}
	return keys
}

const (
	adminTLSKey = "admin.tls"
	tokensKey   = "admin.tokens_file"
)

const directoryKey = "tls.certificate_dir"

// certificateBlockKey returns the key for errors about certificates without a file.
func certificateBlockKey(cfg *config.Config) string {
	if cfg.TLS.CertificateDir != "" {
		return directoryKey
	}
	return "tls"
}

func auditFileKeys(cfg *config.Config) fileKeys {
	keys := make(fileKeys)
	for i, s := range slices.Backward(cfg.Audit.Sinks) {
		keys[s.Path] = config.ItemKey("audit.sinks", i) + ".path"
	}
	if len(cfg.Audit.Sinks) == 0 {
		keys[cfg.Audit.Path] = "audit.path"
	}
	return keys
}

// checkAuditFiles reports which files of the audit log cannot be written. It opens
// none, so a running gateway is not affected.
func checkAuditFiles(cfg *config.Config) error {
	var errs []error
	for path, key := range auditFileKeys(cfg) {
		if path != "" && path != "-" {
			errs = append(errs, config.WithKey(key, plainfile.CheckAppend(path, cfg.Audit.Chain)))
		}
	}
	return errors.Join(errs...)
}
