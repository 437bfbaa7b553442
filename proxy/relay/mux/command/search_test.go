package command

import (
	"strings"
	"testing"
)

func TestOnlyBareSetsAreMessageNumbers(t *testing.T) {
	for program, want := range map[string]string{
		"ALL": "", "UNSEEN NOT DELETED": "", "all": "", "1": "1", "1:3": "1", "*": "1", "2,4:7,9,12:*": "1", "SEEN 3": "1", "(1:3)": "1",
		"((NOT (1)))": "1", "NOT 1": "1", "NOT NOT NOT 1": "1", "OR SEEN 1": "1", "OR NOT (1:3) UID 5": "1", "OR UID 1 UID 2": "", "FUZZY 1": "1",
		"UID 5": "", "UID 1:*": "", "uid 1,2": "", "UID 5 6": "1", "(UID 5) SEEN": "", "KEYWORD 7": "", "UNKEYWORD $Junk": "", "KEYWORD 7 8": "1",
		"HEADER \"x\" 9": "", "HEADER 1 2": "", "HEADER 1 2 3": "1", "HEADER {1}\r\nx \"1:3\"": "", "CHARSET utf-8 ALL": "", "CHARSET 1 2": "1",
		"CHARSET UTF-8 SUBJECT {4}\r\n\xc3\xa9 1": "", "SUBJECT 1": "", "SUBJECT \"1:3\"": "", "SUBJECT {3}\r\n1:3": "", "SUBJECT UID 5": "1",
		"BEFORE 1-Feb-1994": "", "SINCE \"1-Feb-1994\" 4": "1", "SENTON 1-Feb-1994": "", "LARGER 100": "", "SMALLER 100 LARGER 5": "", "LARGER 100 5": "1",
		"OLDER 60": "", "YOUNGER 60": "", "OLDER 60 5": "1", "X-GM-RAW 5": "", "X-GM-RAW \"has:attachment 5\"": "", "X-GM-MSGID 1278455344230334865": "",
		"X-GM-THRID 1266894439832287888": "", "X-GM-LABELS foo": "", "FILTER 5": "", "EMAILID M5": "", "THREADID 64bits": "", "SAVEDSINCE 1-Feb-1994": "",
		"SAVEDATESUPPORTED 5": "1", "ANNOTATION /comment value 5": "", "MODSEQ 620162338": "c", "MODSEQ 5 5": "1c", "NOT MODSEQ 5": "c",
		"MODSEQ \"/flags/\\\\draft\" all 620162338": "c", "MODSEQ \"/flags/\\\\draft\" all 620162338 5": "1c", "MODSEQ {6}\r\n/flags priv 5": "c",
		"modseq 5": "c", "SUBJECT MODSEQ": "", "SUBJECT \"MODSEQ\" ALL": "", "KEYWORD MODSEQ": "", "OR SUBJECT MODSEQ FROM $": "",
		"$": "$", "UID $": "$", "NOT $": "$", "(SEEN $)": "$", "$ 5": "1$", "SUBJECT $": "", "KEYWORD $": "", "OR $ MODSEQ 5": "c$",
		"XUNHEARD 5": "1", "XUNHEARD": "1", "SEEN XUNHEARD \"x\" (ALL)": "1", "X-GUID 5": "1", "MAILBOX x": "1", "XUNHEARD $": "1$", "INTHREAD REFS ALL": "1",
	} {
		for _, name := range []string{"UID SEARCH ", "uid search RETURN () ", "UID SORT (REVERSE DATE) UTF-8 ", "UID THREAD REFERENCES {5}\r\nUTF-8 ", "UID SORT RETURN (MIN) (DATE) 1 "} {
			f, err := Parse([]byte("a " + name + program + "\r\n"))
			numbers, aware, saved := strings.Contains(want, "1"), strings.Contains(want, "c"), strings.Contains(want, "$")
			if err != nil || f.UsesNumbers != numbers || f.EnablesCondstore != aware || f.UsesSavedResult != saved || f.Pins != saved || !f.Retryable || f.Set != nil {
				t.Errorf("%q: %s, %v", name+program, formatProperties(f), err)
			}
			if f.ExpungePolicy == ForbidExpunges != numbers || f.ExpungePolicy == FlushExpunges == numbers {
				t.Errorf("%q: %s", name+program, formatProperties(f))
			}
		}
		for _, name := range []string{"SEARCH ", "SORT (DATE) UTF-8 ", "THREAD REFS utf-8 ", "ESEARCH ", "ESEARCH IN (mailboxes (\"a\" {1}\r\n1) subtree x) RETURN (COUNT) "} {
			if f, err := Parse([]byte("a " + name + program + "\r\n")); err != nil || f.ExpungePolicy != ForbidExpunges || f.EnablesCondstore != strings.Contains(want, "c") {
				t.Errorf("%q: %s, %v", name+program, formatProperties(f), err)
			}
		}
	}
}

func TestSearchesWithConnectionStatePin(t *testing.T) {
	checkProperties(t, map[string]string{
		"SEARCH RETURN (MIN MAX) ALL":                         "none retry",
		"UID SEARCH RETURN (ALL COUNT relevancy CONTEXT) ALL": "sync retry",
		"UID SEARCH RETURN (PARTIAL 1:500) ALL":               "sync retry",
		"UID SEARCH RETURN (PARTIAL -1:-100 SAVE) ALL":        "sync pin saves",
		"UID SEARCH RETURN (SAVE) 1:3":                        "none pin numbers saves",
		"search return (save) all":                            "none pin saves",
		"SEARCH RETURN (UPDATE CONTEXT) ALL":                  "none pin updates",
		"UID SORT RETURN (MIN UPDATE) (DATE) UTF-8 ALL":       "sync pin updates",
		"UID SEARCH RETURN (XNEW) ALL":                        "sync retry pin",
		"ESEARCH IN (selected) RETURN (SAVE) $":               "none pin saves $",
		"UID SEARCH SUBJECT RETURN":                           "sync retry",
		"SEARCH SUBJECT \"RETURN (SAVE)\"":                    "none retry",
	})
}

func TestUnparsableSearchMayUseNumbers(t *testing.T) {
	for _, args := range []string{"", " ", " RETURN", " RETURN ALL", " RETURN (ALL", " RETURN (ALL)", " RETURN (\"SAVE\") ALL", " RETURN (SAVE (X)) ALL",
		" RETURN (PARTIAL) ALL", " \"ALL\"", " \"1:3\"", " {3}\r\nALL", " SEEN \"MODSEQ\" 5", " 0", " 1:", " 5x", " 1,$", " UID", " UID ALL", " UID \"5\"", " UID 0",
		" UID (5)", " SUBJECT", " SUBJECT (x)", " HEADER x", " (ALL", " ALL)", " ALL  SEEN", " ALL ", "  ALL", " MODSEQ", " MODSEQ (5)", " MODSEQ \"x\" all",
		" XUNHEARD MODSEQ 5", " XUNHEARD \"modseq\" 5", " CHARSET UTF-8 RETURN (SAVE) ALL", " XUNHEARD RETURN (SAVE)", " XUNHEARD (", " MODSEQ 5 \"x",
		" " + strings.Repeat("(", maxDepth+1) + "ALL" + strings.Repeat(")", maxDepth+1)} {
		checkSyntaxError(t, "none pin numbers", "UID SEARCH"+args, "SEARCH"+args)
	}
	checkSyntaxError(t, "none pin numbers", "UID SORT", "UID SORT ALL", "UID SORT (DATE)", "UID SORT (DATE) UTF-8", "UID SORT (DATE) (x) ALL", "UID SORT DATE UTF-8 ALL",
		"UID THREAD", "UID THREAD REFS", "UID THREAD REFS utf-8", "UID THREAD (REFS) utf-8 ALL", "UID THREAD REFS (x) ALL", "ESEARCH IN x ALL", "ESEARCH IN (x")
	checkProperties(t, map[string]string{"UID SEARCH " + strings.Repeat("(", maxDepth) + "ALL" + strings.Repeat(")", maxDepth): "sync retry",
		"UID SEARCH " + strings.Repeat("NOT ", 20000) + "1": "none retry numbers"})
}
