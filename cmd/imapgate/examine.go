package main

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"

	"imapgate/internal/config"
	"imapgate/internal/plainfile"
	"imapgate/tlsconf"
)

// fileKeys are the keys that name files.
type fileKeys map[string]string

// place gives errors about these files their keys, and others that of the block.
func (k fileKeys) place(block string, err error) error {
	if parts := config.Parts(err); len(parts) != 1 || parts[0] != err {
		var placed []error
		for _, one := range parts {
			placed = append(placed, k.place(block, one))
		}
		return errors.Join(placed...)
	}
	name := ""
	var file *tlsconf.FileError
	var path *fs.PathError
	switch {
	case errors.As(err, &file):
		name = file.File
	case errors.As(err, &path):
		name = path.Path
	}
	if key := k[name]; key != "" && name != "" {
		return config.At(key, err)
	}
	return config.At(block, err)
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

// doubtCertificates says what clients, or the gateway, will have against certificates
// that can be used all the same.
func doubtCertificates(cfg *config.Config, now time.Time) error {
	var doubts []error
	doubt := func(key, said string) {
		if said != "" {
			doubts = append(doubts, config.At(key, errors.New(said)))
		}
	}
	if needsTLS(cfg) {
		for i, c := range cfg.TLS.Certificates {
			pair, err := tlsconf.LoadKeyPair(tlsconf.KeyPair{Cert: c.Cert, Key: c.Key})
			if err != nil {
				continue // an error already
			}
			for _, said := range tlsconf.Examine(&pair, now) {
				doubt(config.Indexed("tls.certificates", i)+".cert", said)
			}
		}
	}
	trusted := trustedFiles(cfg)
	for _, key := range slices.Sorted(maps.Keys(trusted)) {
		if file := trusted[key]; file != "" {
			said, _ := tlsconf.ExamineCA(file, now) // an error already
			doubt(key, said)
		}
	}
	return errors.Join(doubts...)
}

// trustedFiles are the files of CAs, by key.
func trustedFiles(cfg *config.Config) map[string]string {
	files := map[string]string{"tls.client_ca": cfg.TLS.ClientCA, "auth.http.ca": cfg.Auth.HTTP.CA, "auth.oauth.ca": cfg.Auth.OAuth.CA}
	if cfg.Redis != nil {
		files["redis.ca"] = cfg.Redis.CA
	}
	for name, b := range cfg.Backends {
		files[config.Below("backends", name)+".ca"] = b.CA
	}
	for i, s := range cfg.Audit.Sinks {
		files[config.Indexed("audit.sinks", i)+".ca"] = s.CA
	}
	return files
}
