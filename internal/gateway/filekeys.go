package gateway

import (
	"errors"
	"io/fs"
	"slices"

	"imapgate/internal/config"
	"imapgate/internal/plainfile"
	"imapgate/tlsconf"
)

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

// certificateFileKeys returns the keys of the certificates and CAs of listeners.
func certificateFileKeys(cfg *config.Config) fileKeys {
	keys := fileKeys{cfg.TLS.ClientCA: "tls.client_ca"}
	for i, c := range slices.Backward(cfg.TLS.Certificates) { // the first key of a file that is named twice
		key := config.ItemKey("tls.certificates", i)
		keys[c.Key] = key + ".key"
		keys[c.Cert] = key + ".cert"
	}
	return keys
}

const directoryKey = "tls.certificate_dir"

// certificateBlockKey returns the key for errors about certificates without a file.
func certificateBlockKey(cfg *config.Config) string {
	if cfg.TLS.CertificateDir != "" {
		return directoryKey
	}
	return "tls"
}

// auditFileKeys returns the keys of the audit log's files.
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
