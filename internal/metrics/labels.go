package metrics

// Directions of relayed bytes.
const (
	toClient  = "to_client"
	toBackend = "to_backend"
)

// Sets of label values that are no words of internal/event. Constant.
var (
	// As in package auth: LOGIN is the command, the others are SASL mechanisms.
	mechanisms = []string{"LOGIN", "AUTH=PLAIN", "AUTH=LOGIN", "AUTH=EXTERNAL", "AUTH=SCRAM-SHA-1",
		"AUTH=SCRAM-SHA-1-PLUS", "AUTH=SCRAM-SHA-256", "AUTH=SCRAM-SHA-256-PLUS", "AUTH=OAUTHBEARER", "AUTH=XOAUTH2"}
	// Commands whose repetition has no visible effect.
	retried = []string{"NOOP", "CHECK", "CONVERT", "UID CONVERT", "XAPPLEPUSHSERVICE", "SELECT", "EXAMINE", "UNSELECT", "FETCH", "UID FETCH", "STORE",
		"UID STORE", "SEARCH", "UID SEARCH", "SORT", "UID SORT", "THREAD", "UID THREAD", "UID EXPUNGE", "UIDBATCHES", "ESEARCH",
		"LIST", "LSUB", "XLIST", "RLIST", "RLSUB", "NAMESPACE", "STATUS", "SUBSCRIBE", "UNSUBSCRIBE", "GETACL", "SETACL",
		"DELETEACL", "LISTRIGHTS", "MYRIGHTS", "GETQUOTA", "GETQUOTAROOT", "SETQUOTA", "GETMETADATA", "SETMETADATA",
		"GETANNOTATION", "GENURLAUTH", "URLFETCH", "RESETKEY", "GETJMAPACCESS", "CONVERSIONS"}
)
