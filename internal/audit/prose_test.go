package audit

// The text of docs/AUDIT.md around its tables.
const (
	preface = `<!-- Generated from internal/audit by go generate; change the text and the tables there. -->
# The audit log

The audit log is the record you can rely on later: one line of JSON (RFC 8259) for each event, in the order of the
events. [operating/audit.md](operating/audit.md) describes how to keep it, [CONFIG.md](CONFIG.md#audit) its settings. Search it with

    imapgate audit grep --user alice@example.org --since 24h /var/log/imapgate/audit.log*

Guarantees:

- **Each login attempt has one record**, ` + "`login_accepted`" + ` or ` + "`login_refused`" + `, and each accepted connection has one end,
  ` + "`session_ended`" + ` or ` + "`connection_refused`" + `. The beginning of a connection has no record: the end has the duration, and a
  network scan must not cost two records for each connection. Both have the TLS details. A record
  with ` + "`count`" + ` stands for that many events; see [Folded records](#folded-records).
- **Names are stable.** New events, fields and words may be added; ` + "`v`" + ` grows when a reader of the old form would
  misunderstand the new one. The order of fields is not guaranteed.
- **One event is one line**, whatever a client sends: control characters, line separators, bidirectional controls and
  invalid UTF-8 in text from outside are written visibly (` + "`\\x1b`" + `, ` + "`\\u{202e}`" + `), and long text ends in ` + "`…`" + `.
- **It never contains a password** or token, or the content of messages. An invalid user name is recorded as ` + "`claimed`" + `,
  unless it contains the password or looks like one; see [below](#whose-login-it-was). A password that is typed as the
  user name and looks like a name is recorded in ` + "`user`" + ` or ` + "`claimed`" + `: restrict access to the file.
- **With ` + "`audit.commands`" + ` each command has one record**, however often it was sent to a backend. It has the answer that
  the client got, or ` + "`aborted`" + ` if there was none. It contains only known verbs, mailbox names, counts, sizes and a
  response code, never search terms, flags or the content of literals. ` + "`FETCH`" + ` is not a write, although it may set
  ` + "`\\Seen`" + `; ` + "`CLOSE`" + `, which expunges, is one. Input that is not a command has no record. After ` + "`session_pinned`" + `, and in
  ` + "`splice`" + ` mode, commands are not parsed, so none are recorded.
- A line is at most 4,200 bytes long.

Types: *number* is a whole number from 0, *time* as RFC 3339 in UTC with milliseconds, *address* ` + "`host:port`" + ` with IPv6 in
brackets, *word* one of a closed set, *user* a canonical user name, *text* any text, sanitized.

## Events and fields
`
	epilogue = `
## Whose login it was

Each refused login has ` + "`user`" + `, or ` + "`claimed`" + ` if the name itself was refused, and ` + "`attempt`" + `, whichever command or mechanism
was used and whatever else is wrong with it. Neither ` + "`user`" + ` nor ` + "`claimed`" + ` is recorded

- before TLS (` + "`cleartext`" + `, which has no ` + "`attempt`" + ` either), and for a mechanism that is not offered (` + "`bad_mechanism`" + `):
  the gateway does not read the rest of the exchange;
- for a malformed SASL message, which has no defined place for a name;
- if the text in place of the name may be the password: without a password or token; after an ` + "`AUTH=LOGIN`" + ` exchange
  that was cancelled before the password; and in ` + "`AUTHENTICATE PLAIN`" + ` with an authorization identity that is another
  user or not a valid name, as when the parts are in the wrong order;
- if the name is a SASL message in base64, or a JSON Web Token.

` + "`claimed`" + ` is also omitted if it contains the password or token that came with it, or is a part of it; if it contains a
colon, NUL, U+0001, ` + "`Bearer`" + ` or ` + "`auth=`" + `; and if any of this is true after base64 decoding.

A mechanism that is not offered is recorded by name if it is a known one; otherwise ` + "`mechanism`" + ` is ` + "`AUTH=`" + `.

## The client's program

` + "`program`" + ` and ` + "`program_version`" + ` are the ` + "`name`" + ` and ` + "`version`" + ` that the client sent with the command ` + "`ID`" + ` (RFC 2971). They
are the client's own claim and prove nothing. Every later record of the client has them, so ` + "`login_accepted`" + ` has them
only if the client sent ` + "`ID`" + ` before its login. Most clients send it afterwards: look at ` + "`session_ended`" + `. In ` + "`splice`" + ` mode
commands after the login are not parsed, so an ` + "`ID`" + ` there is not recorded. ` + "`ID`" + ` before STARTTLS is ignored. Each value is
cut at 64 bytes.

## Folded records

A client without an account must not be able to fill the log. For one address (IPv6: network of 64 bits) and one reason,
the first ` + "`audit.first_per_minute`" + ` (10) events of a minute have their own records. All further ones share one record, at
the end of the minute or when the gateway stops. It has ` + "`count`" + `, and the other fields of the last event. Sums are exact:
a record without ` + "`count`" + ` counts as one. Folded are:

- ` + "`connection_refused`" + `, for every reason but ` + "`internal`" + `;
- ` + "`login_refused`" + ` of one user, if the credentials were not verified: ` + "`cleartext`" + `, ` + "`bad_mechanism`" + `, ` + "`bad_exchange`" + `,
  ` + "`client_aborted`" + ` and, if no ` + "`method`" + ` has accepted the user, ` + "`limit_reached`" + `. ` + "`login_accepted`" + ` is never folded, nor is a
  refusal that reveals whether the password was correct.

**Probes.** Load balancers send thousands of health checks a day. A probe is a connection from an address in
` + "`proxy_protocol.trusted`" + ` or ` + "`trusted_networks`" + ` of its listener that ends cleanly and sent nothing, or only PROXY LOCAL, a
TLS handshake, CAPABILITY, STARTTLS or LOGOUT. The probes of an address cause one ` + "`connection_refused`" + ` a minute, whatever
the value of ` + "`audit.first_per_minute`" + `: the first at once, and then one for those since, with ` + "`count`" + ` and their most
frequent ` + "`reason`" + `. Beyond 256 addresses, probes are counted together.

At most 600 such records a minute are not folded, for all addresses together. Beyond 512 combinations of address, reason
and user, events are counted by reason only: such a record has ` + "`count`" + `, but neither ` + "`peer`" + ` nor any other client field.

## Sinks

A record goes to each sink of ` + "`audit.sinks`" + ` whose filter matches. ` + "`events`" + ` and ` + "`results`" + ` are lists; a record without a
result passes the second.

| type | form | what may be lost |
|---|---|---|
| ` + "`file`" + ` | one line each; synced every second; after the file is renamed or removed a new one is created | if the machine crashes: one second. After SIGKILL: records of the last 5 ms, commands of the last 50 ms, and one line may be unfinished |
| ` + "`stdout`" + ` | one line each | depends on the reader |
| ` + "`syslog`" + ` | to ` + "`tcp://`" + ` and ` + "`tls://`" + ` RFC 5424: MSGID is the event, the message is the record without a byte order mark; in datagrams or, on streams, with octet counting (RFC 6587, RFC 5425). To ` + "`unix://`" + ` RFC 3164, as syslog(3) writes it: ` + "`<86>May  1 12:00:00 imapgate[4711]: `" + ` and the record, on streams one line each. ` + "`format`" + ` selects one. A record that is too long for a local socket (macOS: 2,048 bytes) is cut at 1,024 bytes and ends in ` + "`…`" + ` | the protocol has no acknowledgements: data that the kernel had accepted when the connection broke |
| ` + "`redis`" + ` | a stream; the field ` + "`record`" + ` of an entry is the record; trimmed to about ` + "`max_records`" + ` | depends on that Redis. After a broken connection an entry may occur twice |

Each sink has a buffer of 10,000 records or 8 MB. While a sink with ` + "`on_failure: block`" + ` fails, or its buffer is three
quarters full, all logins are refused, with the reason ` + "`audit_unavailable`" + `; sessions continue, and their records use the
rest of the buffer. Records that do not fit are counted, and ` + "`records_lost`" + ` reports them as soon as the sink works again.
Records of commands, limits, lost connections and connections that never logged in (` + "`connection_refused`" + `) are dropped
first, once the buffer is half full: unauthenticated clients must not be able to block logins.

## The chain

With ` + "`audit.chain: true`" + ` each record in a regular file has ` + "`seq`" + ` and ` + "`hash`" + ` as its last two fields. The chain continues
after a restart, if several gateways of one machine and user write the file at the same time, and in the new file after a
rotation by rename. Rotation by copy and truncate breaks it. The file ".NAME.lock" beside the log, which only the
gateway's user may open, has the current position: a record that another process adds while a gateway runs is not part
of the chain, whatever its hash.

    imapgate audit verify /var/log/imapgate/audit.log.2.gz /var/log/imapgate/audit.log.1 /var/log/imapgate/audit.log

reports the first line that was changed, added or removed, or the file that is missing in between. To verify it
yourself: the hash of a line covers 32 bytes, the hash of the previous line (zeros for the first), and the line from its
beginning up to, but without, ` + "`,\"hash\"`" + `. An unfinished line, as a killed process leaves it, is skipped.

The chain does not reveal that the newest records were removed, or that someone with write access rewrote the whole
file. For that, also send the records to another machine, or regularly store the last line of ` + "`verify`" + ` there.
`
)
