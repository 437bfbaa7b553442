//go:build unix

package authhttp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

func openssl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(testbed.FindProgram(t, "openssl", "openssl"), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %v: %v: %s", args, err, out)
	}
	return string(out)
}

func TestCiphersHaveOpenSSLsNames(t *testing.T) {
	known := openssl(t, "ciphers", "-V", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")
	found := 0
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		for line := range strings.Lines(known) {
			if words := strings.Fields(line); words[0] == fmt.Sprintf("0x%02X,0x%02X", suite.ID>>8, suite.ID&0xff) {
				if found++; words[2] != formatCipher(suite.ID) {
					t.Errorf("%s is %s, not %s", suite.Name, words[2], formatCipher(suite.ID))
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("openssl knows only %d of them", found)
	}
	for version, want := range map[uint16]string{tls.VersionTLS10: "TLSv1", tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"} {
		if got := formatVersion(version); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

func TestNamesInCertificatesAreWrittenAsOpenSSLDoes(t *testing.T) {
	text := func(tag int, s string) asn1.RawValue { return asn1.RawValue{Tag: tag, Bytes: []byte(s)} }
	type part struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	type set []part
	one := func(oid []int, v asn1.RawValue) set { return set{{oid, v}} }
	cn := []int{2, 5, 4, 3}
	for name, sets := range map[string][]set{
		"usual":     {one([]int{2, 5, 4, 6}, text(asn1.TagPrintableString, "DE")), one([]int{2, 5, 4, 10}, text(asn1.TagUTF8String, "Ex Org")), one(cn, text(asn1.TagUTF8String, "Alice"))},
		"beyond":    {one(cn, text(asn1.TagUTF8String, "J\u00fcrgen \u2603"))},
		"Latin-1":   {one(cn, text(asn1.TagT61String, "J\xfcrgen"))},
		"BMP":       {one(cn, text(asn1.TagBMPString, "\x00J\x00\xfc"))},
		"specials":  {one(cn, text(asn1.TagUTF8String, ` #a,b+c"d\e<f>g;h=i `))},
		"a hash":    {one(cn, text(asn1.TagUTF8String, `#a#`))},
		"controls":  {one(cn, text(asn1.TagUTF8String, "a\r\nAuth-Status: OK\x00\x7f"))},
		"mail":      {one([]int{1, 2, 840, 113549, 1, 9, 1}, text(asn1.TagIA5String, "a@example.org")), one([]int{0, 9, 2342, 19200300, 100, 1, 1}, text(asn1.TagUTF8String, "uid")), one([]int{0, 9, 2342, 19200300, 100, 1, 25}, text(asn1.TagIA5String, "org"))},
		"unknown":   {one([]int{1, 2, 3, 4, 5}, text(asn1.TagUTF8String, "x")), one(cn, text(asn1.TagUTF8String, "a"))},
		"two in it": {{{cn, text(asn1.TagUTF8String, "a")}, {[]int{2, 5, 4, 11}, text(asn1.TagUTF8String, "b")}}},
	} {
		t.Run(name, func(t *testing.T) {
			list := make([]attributeSET, len(sets))
			for i, s := range sets {
				for _, p := range s {
					list[i] = append(list[i], struct {
						Type  asn1.ObjectIdentifier
						Value asn1.RawValue
					}(p))
				}
			}
			raw, err := asn1.Marshal(list)
			if err != nil {
				t.Fatal(err)
			}
			want := openssl(t, "x509", "-noout", "-subject", "-nameopt", "RFC2253", "-in", writeCertificate(t, raw))
			want = strings.TrimSuffix(strings.TrimPrefix(want, "subject="), "\n")
			if got := formatDN(raw); got != want {
				t.Errorf("%s\nopenssl: %s", got, want)
			}
		})
	}
}

// writeCertificate writes a PEM file with a certificate for an encoded name.
func writeCertificate(t *testing.T, subject []byte) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), RawSubject: subject, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(path, []byte(encodePEM(&x509.Certificate{Raw: der})), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
