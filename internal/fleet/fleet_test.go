package fleet

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"imapgate/internal/testkit"
)

func TestWithoutRedisStatesAreInAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	m := newMember(t, "gw-a", nil)
	m.StateFile = file
	testkit.NoError(t, m.loadStates(t.Context()))
	testkit.NoError(t, m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "a:1", State: "disabled", By: "alice"}))
	next := newMember(t, "gw-a", nil)
	next.StateFile = file
	testkit.NoError(t, next.loadStates(t.Context()))
	if got := next.AddressStates(); len(got) != 1 || got[0].State != "disabled" || got[0].By != "alice" {
		t.Errorf("%+v", got)
	}
	info := testkit.Must(os.Stat(file))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	for _, text := range []string{"{", `[{"state":"sleepy"}]`, `[1]`, ""} {
		testkit.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		hostile := newMember(t, "gw-a", nil)
		hostile.StateFile = file
		_ = hostile.loadStates(t.Context()) // an error or nothing
		if got := hostile.AddressStates(); len(got) != 0 {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if reply := testkit.Must(m.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t); len(reply.Answers) != 1 || reply.Err != nil || reply.Asked != 1 {
		t.Errorf("%+v", reply)
	}
}

func FuzzCommand(f *testing.F) {
	f.Add("id", "greet", `{"name":"bob"}`, "alice", "gw", "1")
	f.Add("{}", "", "[", "\n", "", "-9999999999999999999")
	m := newMember(f, "gw-a", nil)
	f.Fuzz(func(t *testing.T, id, op, args, by, from, deadline string) {
		c := parseCommand(map[string]any{"id": id, "op": op, "args": args, "by": by, "from": from, "deadline": deadline})
		a := m.execute(t.Context(), c)
		if text, err := json.Marshal(a); err != nil || len(text) > maxAnswer {
			t.Errorf("%v", err)
		}
		if op != "greet" && op != "panic" && a.Code != codeUnknown {
			t.Errorf("%q was carried out: %+v", op, a)
		}
	})
}
