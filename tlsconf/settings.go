package tlsconf

// ServerSettings are the settings of the listeners' side of TLS.
type ServerSettings struct {
	MinVersion     string      `yaml:"min_version" default:"1.2" oneof:"1.2 1.3" reload:"new" doc:"The oldest accepted TLS version, in quotes. TLS 1.0 and 1.1 are not supported."`
	Certificates   []CertFiles `yaml:"certificates" doc:"Chosen by the name that the client requests (SNI): an exact match, then a wildcard, then the first certificate. If several match, such as an ECDSA and an RSA one, a client gets the first that it supports; the same applies to the certificates for the names of the first. The files are watched: new connections use a new version. A bad one is reported, and the last good one stays in use."`
	CertificateDir string      `yaml:"certificate_dir" file:"tls" form:"path" example:"/etc/letsencrypt/live" reload:"new" doc:"A directory of more certificates, which are considered after those of certificates, in the order of their file names. Certificates that are not valid now come last; of those for one name, the newest comes first. The files *.pem, *.crt, *.cer and *.key are read, in the directory and in its subdirectories, no deeper, which suits certbot's live/. Chains and keys may be in separate files or in one. A key belongs to the certificates with its public key, whatever the file names. Of several chains for a certificate the longest is served. Files with CAs only are intermediates; a CA is never served, even if its key is present. The directory is watched: new connections see pairs that are added, renewed or removed. While a pair is being written, its last good version stays in use. Unusable files are reported by name."`
	ClientCA       string      `yaml:"client_ca" file:"tls" example:"/etc/imapgate/tls/clients.pem" reload:"new" doc:"PEM file of the CAs of client certificates. If set, clients are asked for a certificate. A client without one is served; one with an invalid certificate is refused in the handshake. Watched: after a change, TLS sessions established under the old CAs cannot be resumed. For auth.external and auth.http."`
}

// CertFiles names the files of a certificate chain and its key.
type CertFiles struct {
	Cert string `yaml:"cert" file:"tls" form:"required" example:"/etc/imapgate/tls/mail.pem" reload:"new" doc:"PEM file of the certificate, followed by its intermediates."`
	Key  string `yaml:"key" file:"tls" form:"required" example:"/etc/imapgate/tls/mail.key" reload:"new" doc:"PEM file of its key."`
}

// OrNone returns the two files; of nil, none.
func (c *CertFiles) OrNone() CertFiles {
	if c == nil {
		return CertFiles{}
	}
	return *c
}
