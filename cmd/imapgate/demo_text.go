package main

import (
	"fmt"
	"io"
	"path/filepath"
	"text/template"
)

// introductionText is what the demo prints first.
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

Press Enter in this window to see what the modes do: west is restarted while a client of bob idles,
and carol logs in again and again. Other clients of bob outlive it, too (see "Speak IMAP").

The commands below are for another window{{if .Folder}}, in the folder {{.Folder}}{{end}}.

Read a mail:
  curl --cacert {{.Cert}} -u alice@example.org:{{.Password}} 'imaps://{{.IMAPS}}/INBOX;MAILINDEX=1'

Speak IMAP (then type: a LOGIN bob {{.Password}}, b SELECT INBOX, c IDLE; press Enter in the first window; DONE, d LOGOUT):
  openssl s_client -quiet -crlf -CAfile {{.Cert}} -connect {{.IMAPS}}
  openssl s_client -quiet -crlf -CAfile {{.Cert}} -connect {{.IMAP}} -starttls imap

Use a mail client (it will ask about the certificate):
  server {{.Host}}, port {{.Ports.IMAPS}}, SSL/TLS, normal password, user name alice@example.org, password {{.Password}}

Send alice's next login to west (either line does it), and read mail again: it is another mail. This
Redis cannot notify of changes as a real one does, so here the gateway asks again after a second.
No mail is copied, and sessions that are open stay in the east; the second line says how many.
  redis-cli -p {{.Ports.Redis}} HSET imapgate:user:alice@example.org backend west
  {{.Command}} route set alice backend=west -c {{.Config}}

Ask where she goes, and why ("changed to" is what the gateway has not noticed yet):
  {{.Command}} route explain alice -c {{.Config}}

Send all who have no record of their own to west, as carol:
  {{.Command}} route set --default backend=west -c {{.Config}}

Enter shows the modes, Ctrl-C ends it. What the audit log ({{.Dir}}/audit.log) says:

`

// printIntroduction prints what there is and what to try.
func (d *demo) printIntroduction(to io.Writer) error {
	t, err := template.New("introduction").Parse(introductionText)
	if err != nil {
		return fmt.Errorf("introduction: %w", err)
	}
	return t.Execute(to, struct {
		*demo
		Host, IMAPS, IMAP, Admin, Redis string
		Cert, Config                    string // as words of a shell
	}{d, loopback, loopbackAddress(d.Ports.IMAPS), loopbackAddress(d.Ports.IMAP), loopbackAddress(d.Ports.Admin), loopbackAddress(d.Ports.Redis),
		quoteShellWord(filepath.Join(d.Dir, "cert.pem")), quoteShellWord(filepath.Join(d.Dir, "imapgate.yaml"))})
}
