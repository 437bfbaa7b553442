package command

import "testing"

func TestMailboxesForTheAuditLog(t *testing.T) {
	for line, want := range map[string][2]string{
		"SELECT inbox":                            {"INBOX", ""},
		"STATUS \"a \\\"b\" (MESSAGES)":           {"a \"b", ""},
		"CREATE {3}\r\nabc":                       {"abc", ""},
		"APPEND {3}":                              {"", ""}, // the literal has not arrived
		"APPEND Sent (\\Seen) {9}":                {"Sent", ""},
		"REPLACE 4 Drafts {9}":                    {"", "Drafts"},
		"uid copy 1:* \"Old mail\"":               {"", "Old mail"},
		"MOVE 1,2 {4+}\r\nOlde":                   {"", "Olde"},
		"COPY $ Box":                              {"", ""}, // pins the session
		"COPY secret Box":                         {"", ""},
		"RENAME a b":                              {"a", "b"},
		"RENAME \"a b\" {1}\r\nc":                 {"a b", "c"},
		"RENAME a":                                {"a", ""},
		"RENAME (secret) b":                       {"", ""},
		"SUBSCRIBE News":                          {"News", ""},
		"SETACL Box secret lrs":                   {"Box", ""},
		"SETMETADATA Box (/private/c \"secret\")": {"Box", ""},
		"GETMETADATA (DEPTH 1) Box secret":        {"", ""},
		"GETMETADATA \"\" secret":                 {"", ""},
		"GETQUOTA secret":                         {"", ""},
		"RESETKEY":                                {"", ""},
		"SEARCH SUBJECT secret":                   {"", ""},
		"LOGIN secret secret":                     {"", ""},
		"URLFETCH imap://secret":                  {"", ""},
		"XUNKNOWN secret":                         {"", ""},
		"LSUB \"\" secret":                        {"", ""},
		"SUBSCRIBE \"never ends":                  {"", ""},
	} {
		raw := []byte("a " + line + "\r\n")
		f, _ := Parse(raw)
		h, err := Lookup(firstLine(raw))
		if err != nil {
			t.Fatal(err)
		}
		if mailbox, destination := f.Mailboxes(h.Spec, raw); mailbox != want[0] || destination != want[1] {
			t.Errorf("%q: %q and %q, want %q", line, mailbox, destination, want)
		}
	}
}
