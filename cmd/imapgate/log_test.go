//go:build unix

package main

import (
	"encoding/json"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/config"
)

func TestLogTimesHaveMilliseconds(t *testing.T) {
	for format, want := range map[string]string{
		"json":    `"time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d)"`,
		"console": `^\d\d:\d\d:\d\d\.\d{3}\s`,
	} {
		var to outputBuffer
		log, err := newLog(config.Log{Level: "info", Format: format}, &to)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("here", zap.Int("n", 1))
		if !regexp.MustCompile(want).MatchString(to.String()) {
			t.Errorf("%s: %s", format, to.String())
		}
	}
}

// Errors at the start are logged in the configured format.
func TestStartErrorsAreLogged(t *testing.T) {
	taken, err := net.Listen("tcp", loopbackAddress(0))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file, _ := gatewayConfig(t, staticEast)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string]string{
		"a port in use":                       strings.Replace(string(text), `{name: plain, address: "127.0.0.1:0"`, `{name: plain, address: "`+taken.Addr().String()+`"`, 1),
		"an audit log that cannot be created": strings.Replace(string(text), `audit.log"`, `nowhere/audit.log"`, 1),
		"a certificate's file":                strings.Replace(string(text), `cert.pem"`, `gone.pem"`, 1),
	} {
		broken := write(t, "broken.yaml", wrong)
		got := imapgate(t, "", "serve", broken, "--allow-root")
		lines := strings.Split(strings.TrimSpace(got.err), "\n")
		var last struct{ Level, Msg, Error string }
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || got.status != 1 || last.Level != "error" || last.Error == "" {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
		console := write(t, "console.yaml", wrong+"log: {format: console}\n")
		if got := imapgate(t, "", "serve", console, "--allow-root"); got.status != 1 || !regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}\tERROR\t`).MatchString(got.err) {
			t.Errorf("%s in the console's format: %+v", name, got)
		}
	}
	if got := imapgate(t, "", "serve", write(t, "wrong.yaml", "colour: red\n")); got.status != 1 || !strings.HasPrefix(got.err, "imapgate: ") {
		t.Errorf("an unreadable configuration: %+v", got)
	}
}
