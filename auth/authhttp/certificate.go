package authhttp

import (
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode/utf16"
)

// addTLS adds how the client's connection is protected and, if clients are asked for
// certificates, the client's certificate. A certificate that does not verify ends the
// handshake, so nginx's FAILED never occurs.
func (c *Client) addTLS(h http.Header, state *tls.ConnectionState) {
	h["Auth-SSL"] = []string{"on"}
	h["Auth-SSL-Protocol"] = []string{formatVersion(state.Version)}
	h["Auth-SSL-Cipher"] = []string{formatCipher(state.CipherSuite)}
	if !c.reportCertificates {
		return
	}
	if len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		h["Auth-SSL-Verify"] = []string{"NONE"}
		return
	}
	cert := state.PeerCertificates[0]
	h["Auth-SSL-Verify"] = []string{"SUCCESS"}
	h["Auth-SSL-Subject"] = []string{formatDN(cert.RawSubject)}
	h["Auth-SSL-Issuer"] = []string{formatDN(cert.RawIssuer)}
	h["Auth-SSL-Serial"] = []string{fmt.Sprintf("%X", cert.SerialNumber.Bytes())}
	h["Auth-SSL-Fingerprint"] = []string{fmt.Sprintf("%x", sha1.Sum(cert.Raw))}
	if c.passClientCert {
		h["Auth-SSL-Cert"] = []string{escapeHeader(encodePEM(cert))}
	}
}

func encodePEM(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// formatVersion returns OpenSSL's name of a version.
func formatVersion(version uint16) string {
	return strings.Replace(strings.Replace(tls.VersionName(version), "TLS ", "TLSv", 1), "v1.0", "v1", 1)
}

// cipherReplacer makes OpenSSL's name of a cipher suite before TLS 1.3 from the registered one.
var cipherReplacer = strings.NewReplacer("TLS_RSA_WITH_", "", "TLS_", "", "_WITH_", "-", "3DES_EDE_CBC", "DES-CBC3", "_CBC", "",
	"AES_128", "AES128", "AES_256", "AES256", "RC4_128", "RC4", "POLY1305_SHA256", "POLY1305", "_", "-")

func formatCipher(id uint16) string {
	name := tls.CipherSuiteName(id)
	if !strings.Contains(name, "_WITH_") { // TLS 1.3
		return name
	}
	return cipherReplacer.Replace(name)
}

// attributeNames maps object identifiers to OpenSSL's short names. Constant.
var attributeNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
	"2.5.4.17": "postalCode", "2.5.4.41": "name", "2.5.4.42": "GN", "2.5.4.43": "initials", "2.5.4.46": "dnQualifier",
	"2.5.4.65": "pseudonym", "2.5.4.97": "organizationIdentifier",
	"1.2.840.113549.1.9.1":       "emailAddress",
	"0.9.2342.19200300.100.1.1":  "UID",
	"0.9.2342.19200300.100.1.3":  "mail",
	"0.9.2342.19200300.100.1.25": "DC",
}

// attributeSET is one relative distinguished name. encoding/asn1 recognizes a SET by the
// suffix.
type attributeSET []struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// formatDN formats a distinguished name as nginx does, in OpenSSL's form of RFC 2253: the last
// part first, bytes beyond ASCII as \XX.
func formatDN(raw []byte) string {
	var name []attributeSET
	if rest, err := asn1.Unmarshal(raw, &name); err != nil || len(rest) > 0 {
		return "" // cannot happen: crypto/x509 has parsed it
	}
	var parts []string
	for _, set := range slices.Backward(name) {
		var attrs []string
		for _, a := range slices.Backward(set) {
			attrs = append(attrs, formatAttribute(a.Type.String(), a.Value))
		}
		parts = append(parts, strings.Join(attrs, "+"))
	}
	return strings.Join(parts, ",")
}

func formatAttribute(oid string, value asn1.RawValue) string {
	name, known := attributeNames[oid]
	text, isText := decodeString(value)
	switch {
	case !known:
		return fmt.Sprintf("%s=#%X", oid, value.FullBytes)
	case !isText:
		return fmt.Sprintf("%s=#%X", name, value.FullBytes)
	}
	return name + "=" + escapeDN(text)
}

// decodeString returns a string of a certificate in UTF-8.
func decodeString(v asn1.RawValue) (text string, ok bool) {
	switch v.Tag {
	case asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagIA5String, asn1.TagNumericString:
		return string(v.Bytes), true
	case asn1.TagT61String: // OpenSSL reads it as Latin-1
		runes := make([]rune, len(v.Bytes))
		for i, c := range v.Bytes {
			runes[i] = rune(c)
		}
		return string(runes), true
	case asn1.TagBMPString:
		units := make([]uint16, len(v.Bytes)/2)
		for i := range units {
			units[i] = uint16(v.Bytes[2*i])<<8 | uint16(v.Bytes[2*i+1])
		}
		return string(utf16.Decode(units)), true
	}
	return "", false
}

// escapeDN escapes a value as in RFC 2253 §2.4.
func escapeDN(s string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case c < ' ' || c >= 0x7f:
			fmt.Fprintf(&b, `\%02X`, c)
		case strings.IndexByte(`,+"\<>;`, c) >= 0, c == '#' && i == 0, c == ' ' && (i == 0 || i == len(s)-1):
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
