package command

import "testing"

func TestMailboxesForTheAuditLog(t *testing.T) {
	for line, want := range map[string][2]string{
		"SELECT inbox":                            {"INBOX", ""},
		"STATUS \"a \\\"b\" (MESSAGES)":           {"a \"b", ""},
		"CREATE {3}\r\nabc":                       {"abc", ""},
		"APPEND {3}":                              {"", ""}, // it is not there yet
		"APPEND Sent (\\Seen) {9}":                {"Sent", ""},
		"REPLACE 4 Drafts {9}":                    {"", "Drafts"},
		"uid copy 1:* \"Old mail\"":               {"", "Old mail"},
		"MOVE 1,2 {4+}\r\nOlde":                   {"", "Olde"},
		"COPY $ Box":                              {"", ""}, // whose session is pinned
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
		whole := []byte("a " + line + "\r\n")
		f, _ := Parse(whole)
		h, err := Lookup(firstLine(whole))
		if err != nil {
			t.Fatal(err)
		}
		if about, to := f.Mailboxes(h.Spec, whole); about != want[0] || to != want[1] {
			t.Errorf("%q: %q and %q, want %q", line, about, to, want)
		}
	}
}
