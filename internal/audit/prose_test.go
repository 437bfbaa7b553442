package audit

// What docs/AUDIT.md says besides its tables.
const (
	preface = `<!-- Generated from internal/audit by go generate; change the text and the tables there. -->
# The audit log

What an operator must be able to prove later: one line of JSON (RFC 8259) for each event, in the order in which they
happened. How to keep it is in [OPERATIONS.md](OPERATIONS.md#logs), its settings are in [CONFIG.md](CONFIG.md#audit). Read it with

    imapgate audit grep --user alice@example.org --since 24h /var/log/imapgate/audit.log*

What may be relied on:

- **Each login attempt has one record**, ` + "`login_accepted` or `login_refused`, and each accepted connection has one end," + `
  ` + "`session_ended` or `connection_refused`" + `. There is none for its beginning: the end has the duration, and a scan of the
  network must not cost two records for each connection. What is known of TLS is in both. Where a record has ` + "`count`" + ` it stands for so
  many; [Folded records](#folded-records) says which may.
- **Names are stable.** New events, fields and words may come; ` + "`v`" + ` grows when a reader of the old form would
  misunderstand the new one. The order of fields is not part of it.
- **One event is one line**, whatever a client sends: control characters, line separators, bidirectional controls and
  invalid UTF-8 in text from outside are written visibly (` + "`\\x1b`, `\\u{202e}`" + `), and long text ends in ` + "`…`" + `.
- **There is never a password in it**, nor a token, nor anything of what messages contain. A name that no account can
  have is there as ` + "`claimed`" + `, unless it shows the password or looks like one; [below](#whose-login-it-was). A password that is typed as the name
  and as such looks like one is a name to the gateway, in ` + "`user` or `claimed`" + `: let few people read the file.
- **With ` + "`audit.commands`" + ` each command has one record**, however often it was sent to a backend, with the answer that the client
  got, or ` + "`aborted`" + ` where none was seen. Its words are known verbs, mailbox names, counts, sizes and a response code; search terms, flags, and what
  literals contain are nowhere. ` + "`FETCH`" + ` is no write, though it may set \\Seen; ` + "`CLOSE`" + `, which expunges, is one. What is no command has
  no record. Behind ` + "`session_pinned`" + `, and in mode ` + "`splice`" + `, nobody reads commands, and there are none.
- A line is at most 4,200 bytes long.

Types: *number* is a whole number from 0, *time* as RFC 3339 in UTC with milliseconds, *address* ` + "`host:port` with IPv6 in brackets" + `,
*word* one of a closed set, *user* a canonical user name, *text* anything, made harmless.

## Events and fields
`
	epilogue = `
## Whose login it was

Each refused login has ` + "`user`" + `, or, where the name was refused as a name, ` + "`claimed`" + `, and ` + "`attempt`" + `, whichever command or mechanism brought it and
whatever else is wrong with it. Neither ` + "`user`" + ` nor ` + "`claimed`" + ` is there

- before TLS (` + "`cleartext`" + `, which has no ` + "`attempt`" + ` either), and for a mechanism that is not offered (` + "`bad_mechanism`" + `), where nobody reads on;
- for a message without the form of its mechanism: it has no place for a name;
- where what stands in the name's place may be the password: without a password or token, or an exchange of ` + "`AUTH=LOGIN`" + ` that was broken off
  before it; and in ` + "`AUTHENTICATE PLAIN`" + ` with an authorization identity that is another user or no name, as when the parts are in the wrong order;
- where the name is a SASL message in base64, or a JSON Web Token.

` + "`claimed`" + ` is not there either where it contains the password or token that came with it, or a piece of that is all it is; where it has a colon, NUL or
U+0001, ` + "`Bearer` or `auth=`" + `; nor where that is so once it is read as base64.

Of a mechanism that is not offered the name is there where it is a known one; else ` + "`mechanism` is `AUTH=`" + `.

## The client's program

` + "`program` and `program_version`" + ` are the ` + "`name` and `version`" + ` that a client gives itself with the command ` + "`ID`" + ` (RFC 2971): its own word, which proves nothing.
They are in every record of the client from then on, and so in ` + "`login_accepted`" + ` only where the client sent ` + "`ID`" + ` before its login. Most send it
afterwards: look at ` + "`session_ended`" + `. In mode ` + "`splice`" + ` nobody reads what comes after the login, and it is not on record there. What was said before
STARTTLS does not count. Each is cut at 64 bytes.

## Folded records

What somebody without an account can cause at will must not fill the log. Of one address (IPv6: network of 64 bits) for one reason, the first
` + "`audit.first_per_minute`" + ` (10) of a minute have a record each; those that follow have one together, at the end of the minute or when the
gateway stops. It has ` + "`count`" + `, and the other fields of the last of them. Sums are exact: a record without ` + "`count`" + ` is one. So are folded:

- ` + "`connection_refused`" + `, for every reason but ` + "`internal`" + `;
- ` + "`login_refused`" + ` where nobody has looked at the credentials, of one user: ` + "`cleartext`, `bad_mechanism`, `bad_exchange`, `client_aborted`" + ` and,
  where no ` + "`method`" + ` has vouched for the user, ` + "`limit_reached`" + `. No ` + "`login_accepted`" + ` is, and no refusal that says whether a password was right.

**Probes.** The health checks of balancers come by the thousand a day. A connection from an address in ` + "`proxy_protocol.trusted`" + ` or
` + "`trusted_networks`" + ` of its listener that ends in good order without having said anything, or no more than PROXY LOCAL, a TLS handshake,
CAPABILITY, STARTTLS or LOGOUT, is one. All those of an address have one ` + "`connection_refused`" + ` a minute, whatever
` + "`audit.first_per_minute`" + ` is: the first at once, and another for those since, with ` + "`count`" + ` and the ` + "`reason`" + ` of most of them. Of more than 256 addresses the rest is counted together.

At most 600 such records a minute are single, from all addresses together. Of more than 512 addresses, reasons and users at a time the rest is
counted by reason alone: such a record has ` + "`count`" + `, and neither ` + "`peer`" + ` nor anything else of a client.

## Sinks

A record goes to each sink of ` + "`audit.sinks`" + ` whose filter lets it through. ` + "`events`" + ` and ` + "`results`" + ` are lists; a record without a
result passes the second.

| type | form | what may be lost |
|---|---|---|
| ` + "`file`" + ` | a line each; synced every second; a renamed or removed file is followed by a new one | by a crash of the machine, a second; by SIGKILL, what had waited for 5 ms, commands 50 ms, and one line may be unfinished |
| ` + "`stdout`" + ` | a line each | as the reader does |
| ` + "`syslog`" + ` | to ` + "`tcp://` and `tls://`" + ` RFC 5424: MSGID is the event, the message is the record without a byte order mark; by datagrams or, on streams, with octet counting (RFC 6587, RFC 5425). To ` + "`unix://`" + ` RFC 3164, as syslog(3) writes it: ` + "`<86>May  1 12:00:00 imapgate[4711]: `" + ` and the record, on streams a line each. ` + "`format`" + ` chooses. A record that a local socket does not take whole (macOS: 2,048 bytes) is cut at 1,024, and ends in ` + "`…`" + ` | the protocol has no answers: what the kernel had taken when a connection broke |
| ` + "`redis`" + ` | a stream; the field ` + "`record`" + ` of an entry is the record; trimmed to about ` + "`max_records`" + ` | as that Redis does. After a broken connection an entry may be there twice |

Each sink has a buffer of 10,000 records or 8 MB. While a sink with ` + "`on_failure: block`" + ` fails, or its buffer is three quarters
full, nobody is let in, with the reason ` + "`audit_unavailable`" + `; sessions go on, and what they have to say finds room in the
rest. What finds none is counted, and told by ` + "`records_lost`" + ` as soon as the sink works again. Records of commands, limits,
lost connections and connections that never logged in (` + "`connection_refused`" + `) give way first, when half of the buffer is full: strangers
must not be able to keep others out.

## The chain

With ` + "`audit.chain: true`" + ` each record in a regular file carries ` + "`seq`" + ` and ` + "`hash`" + `, as its last two fields. The chain goes on when
the gateway is started again, when several gateways of one machine and user write the file at a time, and in the new file when one is moved
away. Rotating by copying and cutting off breaks it. How far it has got is in ".NAME.lock" beside the file, which only the gateway's user may open:
what somebody else adds while a gateway runs is no record of the chain, whatever its hash.

    imapgate audit verify /var/log/imapgate/audit.log.2.gz /var/log/imapgate/audit.log.1 /var/log/imapgate/audit.log

names the first line that was changed, added or removed, or the file that is missing in between. To do it by hand: the
hash of a line is that of 32 bytes, the hash of the line before (zeros before the first), and of the line from its
beginning up to, but without, ` + "`,\"hash\"`" + `. An unfinished line, which a killed process leaves, is passed over.

The chain cannot show that the newest records were cut off, nor that somebody who may write the file has made it all
anew. For that, send the records to another machine too, or note there from time to time what ` + "`verify`" + ` says last.
`
)
