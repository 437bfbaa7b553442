package command

import "testing"

// Dovecot answers some dates with BAD before it has read the message, and then reads the
// message as commands. Such a date must not be sent with a non-synchronizing literal.
func TestPlainDateMatchesTheGrammarExactly(t *testing.T) {
	for date, want := range map[string]bool{
		"17-Jul-2024 02:44:25 -0700": true, " 7-Jul-2024 02:44:25 +0000": true, "29-Feb-2024 23:59:59 +1400": true,
		"17-Jul-2024  02:44:25 -0700": false, "17-Jul-2024 02:44:25  -0700": false, "7-Jul-2024 02:44:25 -0700": false,
		"07-Jul-2024 02:44:25 -0700": false, "17-jul-2024 02:44:25 -0700": false, "17-Jul-2024 02:44:25.5 -0700": false,
		"17-Jul-2024 2:44:25 -0700": false, "17-Jul-2024 02:44:60 -0700": false, "30-Feb-2024 02:44:25 -0700": false,
		"17-Jul-2024 02:44:25 +1401": false, "17-Jul-2024 02:44:25 -2300": false, "17-Jul-1969 02:44:25 -0700": false,
		"17-Jul-2038 02:44:25 -0700": false, "never": false, "": false,
	} {
		if got := IsPlainAppend([]byte(`a APPEND INBOX (\Seen) "` + date + "\" {3+}\r\n")); got != want {
			t.Errorf("%q is plain: %v", date, got)
		}
	}
}
