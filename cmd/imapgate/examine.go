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

// place gives errors about these files their keys, and others that of the block.
func (k fileKeys) place(block string, err error) error {
	var placed []error
	for _, one := range config.Parts(err) {
		name := ""
		var file *tlsconf.FileError
		var path *fs.PathError
		switch {
		case errors.As(one, &file):
			name = file.File
		case errors.As(one, &path):
			name = path.Path
		}
		key := block
		if name != "" && k[name] != "" {
			key = k[name]
		}
		placed = append(placed, config.At(key, one))
	}
	return errors.Join(placed...)
}

// certificateKeys are those of what listeners show and trust.
func certificateKeys(cfg *config.Config) fileKeys {
	keys := fileKeys{cfg.TLS.ClientCA: "tls.client_ca"}
	for i, c := range slices.Backward(cfg.TLS.Certificates) { // one file may be named twice: the first counts
		key := config.Indexed("tls.certificates", i)
		keys[c.Key] = key + ".key"
		keys[c.Cert] = key + ".cert"
	}
	return keys
}

const directoryKey = "tls.certificate_dir"

// certificatesKey is that of certificates that have none of their own.
func certificatesKey(cfg *config.Config) string {
	if cfg.TLS.Directory != "" {
		return directoryKey
	}
	return "tls"
}

// auditKeys are those of the files that records go to.
func auditKeys(cfg *config.Config) fileKeys {
	keys := make(fileKeys)
	for i, s := range slices.Backward(cfg.Audit.Sinks) {
		keys[s.Path] = config.Indexed("audit.sinks", i) + ".path"
	}
	if len(cfg.Audit.Sinks) == 0 {
		keys[cfg.Audit.Path] = "audit.path"
	}
	return keys
}

// examineAudit says which files of the audit log could not be written. It opens none,
// and a gateway that writes there notices nothing.
func examineAudit(cfg *config.Config) error {
	var wrong []error
	for path, key := range auditKeys(cfg) {
		if path != "" && path != "-" {
			wrong = append(wrong, config.At(key, plainfile.Appendable(path, cfg.Audit.Chain)))
		}
	}
	return errors.Join(wrong...)
}
