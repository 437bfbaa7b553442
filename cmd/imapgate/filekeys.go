package main

import (
	"errors"
	"io/fs"
	"slices"

	"imapgate/internal/config"
	"imapgate/internal/plainfile"
	"imapgate/tlsconf"
)

// fileKeys are the keys that name files.
type fileKeys map[string]string

// addKeys gives errors about these files their keys, and others that of the block.
func (k fileKeys) addKeys(block string, err error) error {
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
		if name != "" && k[name] != "" {
			key = k[name]
		}
		keyed = append(keyed, config.WithKey(key, part))
	}
	return errors.Join(keyed...)
}

// certificateFileKeys are those of what listeners show and trust.
func certificateFileKeys(cfg *config.Config) fileKeys {
	keys := fileKeys{cfg.TLS.ClientCA: "tls.client_ca"}
	for i, c := range slices.Backward(cfg.TLS.Certificates) { // one file may be named twice: the first counts
		key := config.ItemKey("tls.certificates", i)
		keys[c.Key] = key + ".key"
		keys[c.Cert] = key + ".cert"
	}
	return keys
}

const directoryKey = "tls.certificate_dir"

// certificateBlockKey is that of certificates that have none of their own.
func certificateBlockKey(cfg *config.Config) string {
	if cfg.TLS.CertificateDir != "" {
		return directoryKey
	}
	return "tls"
}

// auditFileKeys are those of the files that records go to.
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

// checkAuditFiles says which files of the audit log could not be written. It opens none,
// and a gateway that writes there notices nothing.
func checkAuditFiles(cfg *config.Config) error {
	var errs []error
	for path, key := range auditFileKeys(cfg) {
		if path != "" && path != "-" {
			errs = append(errs, config.WithKey(key, plainfile.CheckAppend(path, cfg.Audit.Chain)))
		}
	}
	return errors.Join(errs...)
}
