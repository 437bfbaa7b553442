//go:build unix

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// testCert is a certificate with its key.
type testCert struct {
	cert    *x509.Certificate
	private *ecdsa.PrivateKey
}

// issueCert issues a certificate that is valid for two days around at. It is signed
// by by, or self-signed without one.
func issueCert(t testing.TB, name string, at time.Time, by *testCert) *testCert {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	made := &testCert{private: private, cert: &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: at.Add(-24 * time.Hour), NotAfter: at.Add(24 * time.Hour), BasicConstraintsValid: true,
		IsCA: strings.HasSuffix(name, "CA"), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}}
	parent, signer := made.cert, private
	if by != nil {
		parent, signer = by.cert, by.private
	}
	der, err := x509.CreateCertificate(rand.Reader, made.cert, parent, &private.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	if made.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return made
}

func (i *testCert) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw}))
}

func (i *testCert) key(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// checkCert returns the output of check for a certificate and its key, in its own
// process. roots are the CAs that the system trusts.
func checkCert(t testing.TB, cert, key, roots string) (commandResult, string) {
	t.Helper()
	file := write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0"}]
tls:
  certificates:
    - cert: %s
      key: %s
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:143", tls: none}}
`, write(t, "cert.pem", cert), write(t, "key.pem", key)))
	return runCheck(t, roots, "--config", file), file
}

func runCheck(t testing.TB, roots string, args ...string) commandResult {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"check"}, args...)...)
	cmd.Env = append(os.Environ(), runMainVariable+"=1", "SSL_CERT_FILE="+roots, "SSL_CERT_DIR="+t.TempDir())
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return commandResult{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func TestCertificatesThatClientsRefuseAreWarnedOf(t *testing.T) {
	now := time.Now()
	root := issueCert(t, "root CA", now, nil)
	between := issueCert(t, "between CA", now, root)
	leaf := issueCert(t, "mail.example.org", now, between)
	old := issueCert(t, "mail.example.org", now.Add(-48*time.Hour), between)
	young := issueCert(t, "young CA", now, nil)
	before := issueCert(t, "mail.example.org", now.Add(-96*time.Hour), young)
	private := issueCert(t, "private CA", now, nil)
	inside := issueCert(t, "mail.internal", now, private)
	trusted := write(t, "roots.pem", root.pem())
	for name, c := range map[string]struct {
		holder *testCert
		chain  string
		want   string
	}{
		"whole":                {leaf, between.pem(), ""},
		"without intermediate": {leaf, "", `the chain ends with "CN=between CA", which is not in the file and no CA that this system trusts`},
		"another intermediate": {leaf, private.pem(), `the chain ends with "CN=between CA"`},
		"private CA":           {inside, "", `the chain ends with "CN=private CA"`},
		"private CA, in there": {inside, private.pem(), ""},
		"its own CA":           {issueCert(t, "alone.example.org", now, nil), "", ""},
		"expired":              {old, between.pem(), "the certificate expired at " + old.cert.NotAfter.UTC().Format(time.RFC3339)},
		"not yet valid":        {issueCert(t, "mail.example.org", now.Add(48*time.Hour), nil), "", "the certificate is not valid before "},
		"expired, and alone":   {old, "", "the chain ends with"},
		"older than its CA":    {before, young.pem(), "the certificate expired at "},
	} {
		got, file := checkCert(t, c.holder.pem()+c.chain, c.holder.key(t), trusted)
		if name == "older than its CA" && strings.Count(got.err, "warning: ") != 1 {
			t.Errorf("%s: one problem reported twice: %s", name, got.err)
		}
		if c.want == "" && got.err != "" || !strings.Contains(got.err, c.want) || got.status != 0 {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
		if c.want != "" && !regexp.MustCompile("^warning: "+file+`:5:13: tls\.certificates\[0\]\.cert: /[^ ]*/cert\.pem: the c`).MatchString(got.err) {
			t.Errorf("%s: without its position: %s", name, got.err)
		}
	}
	if got, _ := checkCert(t, leaf.pem(), leaf.key(t), write(t, "none", "")); got.err != "" {
		t.Errorf("a system without CAs: %+v", got)
	}
}

func TestMismatchedKeyPairIsExplained(t *testing.T) {
	now := time.Now()
	ca := issueCert(t, "CA", now, nil)
	leaf, other := issueCert(t, "mail.example.org", now, nil), issueCert(t, "mail.example.net", now, nil)
	openssl := func(args ...string) string {
		out, err := exec.Command(testbed.FindProgram(t, "openssl", "openssl"), args...).Output()
		if err != nil {
			t.Fatalf("openssl %v: %v", args, err)
		}
		return string(out)
	}
	plain := write(t, "plain", leaf.key(t))
	const mark = "\xef\xbb\xbf"
	for name, c := range map[string]struct{ cert, key, at, want string }{
		"good":                {leaf.pem(), leaf.key(t), "", ""},
		"marks":               {mark + leaf.pem() + mark + ca.pem(), mark + leaf.key(t), "", ""},
		"of Windows":          {strings.ReplaceAll(mark+leaf.pem(), "\n", "\r\n"), strings.ReplaceAll(leaf.key(t), "\n", "\r\n"), "", ""},
		"both in both":        {leaf.key(t) + leaf.pem(), leaf.pem() + leaf.key(t), "", ""},
		"PKCS #1 or SEC 1":    {leaf.pem(), openssl("ec", "-in", plain), "", ""},
		"encrypted, PKCS #8":  {leaf.pem(), openssl("pkey", "-in", plain, "-aes256", "-passout", "pass:x"), ":6:12: tls.certificates[0].key: ", "the key is encrypted, and imapgate cannot ask for its password: openssl pkey -in "},
		"encrypted, before":   {leaf.pem(), openssl("ec", "-in", plain, "-aes256", "-passout", "pass:x"), ":6:12: tls.certificates[0].key: ", "the key is encrypted"},
		"another's key":       {leaf.pem(), other.key(t), ":6:12: tls.certificates[0].key: ", "this key does not match the certificate in "},
		"a CA first":          {ca.pem() + leaf.pem(), leaf.key(t), ":5:13: tls.certificates[0].cert: ", "is not the first: put it before its intermediates"},
		"swapped":             {leaf.key(t), leaf.pem(), ":5:13: tls.certificates[0].cert: ", "it holds a key and no certificate: are cert and key swapped?"},
		"a certificate twice": {leaf.pem(), leaf.pem(), ":6:12: tls.certificates[0].key: ", "it holds a certificate and no key: are cert and key swapped?"},
		"DER":                 {string(leaf.cert.Raw), leaf.key(t), ":5:13: tls.certificates[0].cert: ", "it is DER; PEM is needed: openssl x509 -inform DER"},
		"UTF-16":              {"\xff\xfe-\x00", leaf.key(t), ":5:13: tls.certificates[0].cert: ", "it is written in UTF-16"},
		"empty":               {"", leaf.key(t), ":5:13: tls.certificates[0].cert: ", "it holds no PEM certificate"},
		"an empty key":        {leaf.pem(), "", ":6:12: tls.certificates[0].key: ", "it holds no PEM key"},
	} {
		got, file := checkCert(t, c.cert, c.key, "")
		if c.want == "" && (got.status != 0 || got.err != "") {
			t.Errorf("%s: %+v", name, got)
		}
		if c.want != "" && (got.status != 1 || !strings.HasPrefix(got.err, file+c.at) || !strings.Contains(got.err, c.want)) {
			t.Errorf("%s: %+v, want %q %q", name, got, c.at, c.want)
		}
		if strings.Contains(got.err, "PRIVATE KEY-----\nM") {
			t.Errorf("%s: the output contains the key: %s", name, got.err)
		}
	}
}

func TestExpiredCAsAreWarnedOf(t *testing.T) {
	old := issueCert(t, "old CA", time.Now().Add(-48*time.Hour), nil)
	config := func(text string) string {
		return write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:993", ca: %s}}
`, write(t, "ca.pem", text)))
	}
	file := config(old.pem())
	if got := imapgate(t, "", "check", "--config", file); got.status != 0 || !regexp.MustCompile("^warning: "+file+`:4:49: backends\.east\.ca: /[^ ]*/ca\.pem: the certificate expired at `).MatchString(got.err) {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "", "check", "--config", config(old.pem()+issueCert(t, "new CA", time.Now(), nil).pem())); got.status != 0 || got.err != "" {
		t.Errorf("a CA with a successor: %+v", got)
	}
}

// plainConfig writes a configuration that needs no files, with more appended.
func plainConfig(t testing.TB, more string) string {
	t.Helper()
	return write(t, "imapgate.yaml", `
listeners: [{address: "127.0.0.1:0", tls: none}]
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:143", tls: none}}
`+more)
}

func TestUnwritableAuditLogIsFoundWithoutWriting(t *testing.T) {
	dir := t.TempDir()
	for more, want := range map[string]string{
		"audit: {path: " + dir + "/audit.log}":      "",
		"audit: {path: " + dir + "}":                ":5:15: audit.path: " + dir + " is a directory",
		"audit: {path: " + dir + "/none/audit.log}": ":5:15: audit.path: directory " + dir + "/none does not exist",
		"audit: {sinks: [{type: stdout}, {type: file, name: f, path: " + dir + "/none/audit.log}]}": ":5:61: audit.sinks[1].path: directory ",
	} {
		file := plainConfig(t, more)
		got := imapgate(t, "", "check", "--config", file)
		if want == "" && (got.status != 0 || got.err != "") || want != "" && (got.status != 1 || !strings.HasPrefix(got.err, file+want)) {
			t.Errorf("%s: %+v, want %q", more, got, want)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("files remain: %v, %v", left, err)
	}
}

func TestCheckLeavesARunningAuditLogAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	file := plainConfig(t, "admin: {address: \"127.0.0.1:0\"}\naudit: {path: "+path+", chain: true}\n")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	named := write(t, "named.yaml", strings.Replace(string(text), `{address: "127.0.0.1:0", tls`, `{name: plain, address: "127.0.0.1:0", tls`, 1))
	s := startServe(t, named)
	testkit.Eventually(t, "the first record", func() bool { b, _ := os.ReadFile(path); return strings.Contains(string(b), "started") }, s.String)
	before, _ := os.ReadFile(path)
	if got := imapgate(t, "", "check", "--config", named); got.status != 0 || got.err != "" {
		t.Errorf("%+v", got)
	}
	if after, _ := os.ReadFile(path); string(after) != string(before) {
		t.Errorf("the audit log was written:\n%s", after)
	}
}

func TestSnapshotDirectoryIsChecked(t *testing.T) {
	file := write(t, "imapgate.yaml", `
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: ["127.0.0.1:1"]}
routing: {snapshot: /none/routes}
backends: {east: {address: "127.0.0.1:143", tls: none}}
`)
	got := imapgate(t, "", "check", "--config", file)
	if got.status != 0 || !strings.HasPrefix(got.err, "warning: "+file+":4:21: routing.snapshot: no snapshot will be written: directory /none does not exist") {
		t.Errorf("%+v", got)
	}
}

func TestRedisErrorNamesItsConfigKey(t *testing.T) {
	file := plainConfig(t, "redis: {addresses: [\"127.0.0.1:1\"], tls: true, ca: /none}\n")
	for _, args := range [][]string{{"ban", "list"}, {"limits", "show", "192.0.2.7"}, {"route", "explain", "alice"}} {
		got := imapgate(t, "", append(args, "--config", file)...)
		if want := file + ":5:52: redis.ca: /none: no such file"; got.status != 1 || !strings.Contains(got.err, want) {
			t.Errorf("%v: %+v, want %q", args, got, want)
		}
	}
}

func TestStartErrorNamesItsConfigKey(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	address := taken.Addr().String()
	for more, want := range map[string]string{
		"audit: {path: /none/audit.log}":                                                                    ":5:15: audit.path: ",
		"audit: {sinks: [{type: syslog, address: \"tls://127.0.0.1:1\", ca: /none}]}":                       ":5:66: audit.sinks[0].ca: /none: no such file",
		"auth: {methods: [file], file: {path: /none}}":                                                      ":5:38: auth.file.path: read passwd-file /none: ",
		"auth: {methods: [file], file: {path: /dev/null}, mechanisms: [XOAUTH2]}":                           ":5:38: auth.file.path: ",
		"auth: {mechanisms: [SCRAM-SHA-256], scram_secret_file: " + write(t, "s", "0123456789abcdef") + "}": ":5:8: auth.mechanisms: ",
		"auth: {methods: [http], http: {urls: [\"https://127.0.0.1:1/\"], ca: /none}}":                      ":5:68: auth.http.ca: /none: no such file",
		"auth: {methods: [oauth], oauth: {issuer: https://127.0.0.1:1, audience: [x], ca: /none}}":          ":5:82: auth.oauth.ca: /none: no such file",
		"redis: {tls: true, ca: /none}":                                                                     ":5:24: redis.ca: /none: no such file",
		"admin: {address: \"" + address + "\"}":                                                             ":5:18: admin.address: ",
		"auth: {methods: [http], http: {urls: [\"https://127.0.0.1:1/\"], cert: /none, key: /none2}}":       ":5:70: auth.http.cert: /none: no such file",
	} {
		file := plainConfig(t, more)
		got := imapgate(t, "", "serve", "--config", file)
		if got.status != 1 || !strings.Contains(got.err, `"error":"`+file+want) {
			t.Errorf("%s: %+v, want %q", more, got, want)
		}
		if strings.Contains(more, address) {
			continue // check opens no port
		}
		if got := imapgate(t, "", "check", "--config", file); got.status != 1 || !strings.HasPrefix(got.err, file+want) {
			t.Errorf("check: %s: %+v, want %q", more, got, want)
		}
	}
	file := write(t, "imapgate.yaml", `
listeners:
  - {address: "127.0.0.1:0", tls: none}
  - {address: "`+address+`", tls: none}
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:143", tls: none}}
admin: {address: ""}
`)
	if got := imapgate(t, "", "serve", "--config", file); got.status != 1 || !strings.Contains(got.err, file+":4:15: listeners[1].address: listen tcp "+address) {
		t.Errorf("%+v", got)
	}
}

func TestCheckHasTheRightsOfTheServicesUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it becomes another user")
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "imapgate") // accessible to every user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	leaf := issueCert(t, "mail.example.org", time.Now(), nil)
	err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(at("imapgate"), program, 0o755), os.WriteFile(at("cert.pem"), []byte(leaf.pem()), 0o644),
		os.WriteFile(at("key.pem"), []byte(leaf.key(t)), 0o600), os.WriteFile(at("audit.log"), nil, 0o600), os.WriteFile(at("secret"), []byte("s\n"), 0o600),
		os.WriteFile(at("imapgate.yaml"), fmt.Appendf(nil, `
listeners: [{address: "127.0.0.1:0"}]
tls: {certificates: [{cert: %[1]s/cert.pem, key: %[1]s/key.pem}]}
redis: {password_file: %[1]s/secret}
backends: {east: {address: "127.0.0.1:143", tls: none}}
audit: {path: %[1]s/audit.log}
`, dir), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		cmd := exec.Command(at("imapgate"), append([]string{"check", "--config", at("imapgate.yaml")}, args...)...)
		cmd.Env, cmd.Dir = []string{runMainVariable + "=1"}, "/"
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if got := run("--user", "root"); got != at("imapgate.yaml")+" is valid\n" {
		t.Errorf("root: %s", got)
	}
	if got := run("--user", "nobody"); !strings.Contains(got, "redis.password_file: permission denied") {
		t.Errorf("a secret: %s", got)
	}
	if err := os.Chown(at("secret"), 65534, 65534); err != nil {
		t.Fatal(err)
	}
	got := run("--user", "nobody")
	for _, want := range []string{
		"imapgate.yaml:3:", "tls.certificates[0].key: " + at("key.pem") + ": permission denied",
		"imapgate.yaml:6:15: audit.path: " + at("audit.log") + " cannot be written by user nobody: it belongs to root, mode 0600",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if got := run("--user", "no-such-user-7"); !strings.Contains(got, "unknown user") {
		t.Errorf("%s", got)
	}
	cmd := exec.Command(at("imapgate"), "check", "--user", "daemon")
	cmd.Env, cmd.Dir = []string{runMainVariable + "=1"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), "only root can check as another user") {
		t.Errorf("%s", out)
	}
}

func TestCheckAsRootNamesTheServiceUser(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		if _, user := findUnitUser(root); user != want {
			t.Errorf("%q, want %q", user, want)
		}
	}
	expect("")
	put("usr/lib/systemd/system/imapgate.service", "[Service]\nUser=imapgw\nGroup=imapgw\n")
	expect("imapgw")
	put("etc/systemd/system/imapgate.service", "[Service]\n User = x\nUser=mail\n")
	expect("mail")
	put("etc/systemd/system/imapgate.service.d/user.conf", "[Service]\nUser=other\n")
	expect("other")
	if os.Geteuid() == 0 {
		if got := warnUserMismatch(root); len(got) != 1 || !strings.HasSuffix(got[0].Text, "imapgate check --user other") {
			t.Errorf("%v", got)
		}
	}
}
