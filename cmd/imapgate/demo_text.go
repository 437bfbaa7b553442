package main

import (
	"fmt"
	"io"
	"path/filepath"
	"text/template"
)

// introductionText is the first output of the demo.
const introductionText = `imapgate demo: a gateway, two mail servers (east and west), Redis and a certificate.

  IMAP over TLS   {{.IMAPS}}
  IMAP, STARTTLS  {{.IMAP}}
  admin           http://{{.Admin}}/metrics
  Redis           {{.Redis}}
  files           {{.Dir}} (removed at the end)

  user               password  mail is on                                mode
  alice@example.org  {{.Password}}      east, by imapgate:user:alice@example.org  splice: bytes are copied
  bob@example.org    {{.Password}}      west, by imapgate:user:bob@example.org    resume: outlives a backend's restart
  carol@example.org  {{.Password}}      east, by imapgate:default                 reuse: logins share connections

Press Enter in this window to see the modes: west restarts while a client of bob is in IDLE, and
carol logs in several times. Your own sessions as bob survive the restart, too (see "Speak IMAP").

Run the commands below in another window{{if .Folder}}, in the folder {{.Folder}}{{end}}.

Read a mail:
  curl --cacert {{.Cert}} -u alice@example.org:{{.Password}} 'imaps://{{.IMAPS}}/INBOX;MAILINDEX=1'

Speak IMAP (then type: a LOGIN bob {{.Password}}, b SELECT INBOX, c IDLE; press Enter in the first window; DONE, d LOGOUT):
  openssl s_client -quiet -crlf -CAfile {{.Cert}} -connect {{.IMAPS}}
  openssl s_client -quiet -crlf -CAfile {{.Cert}} -connect {{.IMAP}} -starttls imap

Use a mail client (it will warn about the certificate):
  server {{.Host}}, port {{.Ports.IMAPS}}, SSL/TLS, normal password, user name alice@example.org, password {{.Password}}

Send alice's next login to west (either command does it), and read mail again: it is another message. This
Redis cannot announce changes as a real one does, so the gateway here queries it again after a second.
No mail is copied, and open sessions stay on east; the second command prints how many.
  redis-cli -p {{.Ports.Redis}} HSET imapgate:user:alice@example.org backend west
  {{.Command}} route set alice backend=west -c {{.Config}}

Show her route and the reason ("changed to" is a change that the gateway has not noticed yet):
  {{.Command}} route explain alice -c {{.Config}}

Send all users without their own record, such as carol, to west:
  {{.Command}} route set --default backend=west -c {{.Config}}

Enter shows the modes, Ctrl-C ends the demo. Records of the audit log ({{.Dir}}/audit.log):

`

// printIntroduction prints the introduction.
func (d *demo) printIntroduction(to io.Writer) error {
	t, err := template.New("introduction").Parse(introductionText)
	if err != nil {
		return fmt.Errorf("introduction: %w", err)
	}
	return t.Execute(to, struct {
		*demo
		Host, IMAPS, IMAP, Admin, Redis string
		Cert, Config                    string // quoted for a shell
	}{d, loopback, loopbackAddress(d.Ports.IMAPS), loopbackAddress(d.Ports.IMAP), loopbackAddress(d.Ports.Admin), loopbackAddress(d.Ports.Redis),
		quoteShellWord(filepath.Join(d.Dir, "cert.pem")), quoteShellWord(filepath.Join(d.Dir, "imapgate.yaml"))})
}
