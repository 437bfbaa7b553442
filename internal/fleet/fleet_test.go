package fleet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/testkit"
)

func TestWithoutRedisAFleetHasOneGateway(t *testing.T) {
	m := newMember(t, "gw-a", nil)
	m.run(t)
	if reply := m.ask(t, "greet", greeting{"bob"}, []string{greetingA}); reply.Err != nil {
		t.Error(reply.Err)
	}
	if all, err := m.List(t.Context()); len(all) != 1 || err != nil || all[0].Name != "gw-a" {
		t.Errorf("%+v, %v", all, err)
	}
}

// restart returns a gateway without Redis that has read its state file.
func restart(t *testing.T, file string) (*member, error) {
	t.Helper()
	m := newMember(t, "gw-a", nil)
	m.StateFile = file
	return m, m.loadFile()
}

func TestWithoutRedisStatesAreInAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	m, err := restart(t, file)
	testkit.NoError(t, err) // there is none
	testkit.NoError(t, m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "a:1", State: "disabled", By: "alice"}))
	m, err = restart(t, file)
	testkit.NoError(t, err)
	if got := <-m.states; got.State != "disabled" || got.By != "alice" {
		t.Errorf("%+v", got)
	}
	if mode := testkit.Must(os.Stat(file))(t).Mode(); mode.Perm() != 0o600 {
		t.Errorf("mode %v", mode)
	}
	testkit.NoError(t, m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "a:1"}))
	m, err = restart(t, file)
	if got := m.AddressStates(); len(got) != 0 || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	m.StateFile = filepath.Join(t.TempDir(), "missing", "state.json")
	if err := m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "a:1", State: "disabled"}); err == nil || len(m.AddressStates()) != 1 {
		t.Errorf("%v: the state holds until the end of the process", err)
	}
}

func TestChangesAtTheSameTimeAreAllInTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	m, _ := restart(t, file)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: fmt.Sprint("a:", i), State: "disabled"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	m, err := restart(t, file)
	if n := len(m.AddressStates()); n != 20 || err != nil {
		t.Errorf("%d states, %v", n, err)
	}
	if files := testkit.Must(os.ReadDir(filepath.Dir(file)))(t); len(files) != 1 {
		t.Errorf("%v", files)
	}
}

func TestAStateFileMayContainAnything(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	many := `[` + strings.Repeat(`{"backend":"b","address":"a","state":"disabled"},`, maxStates+1) + `{}]`
	for _, text := range []string{
		"{", `[{"backend":"b","address":"a","state":"sleepy"}]`, `[{"backend":"b c","address":"a","state":"disabled"}]`, `[1]`, "",
		`[{"backend":"b","address":"\u001b[2J","state":"disabled"}]`, many, strings.Repeat("[", maxStateFile), strings.Repeat(" ", maxStateFile) + "[]",
	} {
		testkit.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		m, err := restart(t, file)
		if err == nil || !strings.Contains(err.Error(), file) || len(m.AddressStates()) != 0 {
			t.Errorf("%.60q: %v, %d states", text, err, len(m.AddressStates()))
		}
	}
	if _, err := restart(t, filepath.Dir(file)); err == nil {
		t.Error("a folder is read")
	}
}

func TestWithoutRedisAPlaceLastsAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMember(t, "gw-a", nil)
		both, bob := []string{"e1", "e2"}, user(t, "bob")
		claim := func(candidates, keep []string, want string) func() {
			t.Helper()
			at, release := m.Claim(t.Context(), "east", bob, candidates, keep)
			if at != want {
				t.Errorf("at %q, want %q", at, want)
			}
			return release
		}
		first := claim([]string{"e2"}, nil, "e2")
		time.Sleep(time.Hour)
		second := claim(both, nil, "e2")
		first()
		second()
		second()
		time.Sleep(placeTTL - time.Second)
		m.places.sweep(time.Now())
		claim([]string{"e1"}, []string{"e2"}, "e2")()
		time.Sleep(placeTTL + time.Second)
		claim(both, nil, "e1")()
		claim(nil, nil, "")()
		claim(nil, []string{"e2"}, "")()
		time.Sleep(placeTTL + time.Second)
		m.places.sweep(time.Now())
		if n := len(m.places.byUser); n != 0 || m.places.empty != 0 {
			t.Errorf("%d places, %d empty", n, m.places.empty)
		}
	})
}

func TestLoginsAtTheSameTimeAgree(t *testing.T) {
	m := newMember(t, "gw-a", nil)
	bob := user(t, "bob")
	found := make([]string, 50)
	var wg sync.WaitGroup
	for i := range found {
		candidates := []string{"e1", "e2"}
		if i%2 == 1 {
			slices.Reverse(candidates)
		}
		wg.Go(func() { found[i], _ = m.Claim(t.Context(), "east", bob, candidates, nil) })
	}
	wg.Wait()
	if slices.Sort(found); found[0] != found[len(found)-1] {
		t.Errorf("%q", slices.Compact(found))
	}
}

func TestPlacesWithoutConnectionsHaveABound(t *testing.T) {
	m := newMember(t, "gw-a", nil)
	for i := range maxEmptyPlaces + 10 {
		key := placeKey{fmt.Sprint("backend", i), user(t, "bob")}
		m.places.enter(key, []string{"e1"}, []string{"e1"})
		m.places.leave(key)
	}
	if n := len(m.places.byUser); n != maxEmptyPlaces {
		t.Errorf("%d places", n)
	}
}

func TestOnlyTheLatestCommandsAreRemembered(t *testing.T) {
	a := newAnswered()
	for i := range 3 * maxAnswered {
		id := fmt.Sprint(i)
		if _, isNew := a.add(id); !isNew {
			t.Fatalf("command %s is known", id)
		}
		a.keep(id, []byte(id))
	}
	a.add("large")
	a.keep("large", make([]byte, maxKeptAnswer+1))
	a.keep("never added", []byte("x"))
	kept := 0
	for _, text := range a.texts {
		if text != nil {
			kept++
		}
	}
	if len(a.texts) != maxAnswered || kept != maxKept {
		t.Errorf("%d commands and %d answers are remembered", len(a.texts), kept)
	}
	last := fmt.Sprint(3*maxAnswered - 1)
	if text, isNew := a.add(last); isNew || string(text) != last {
		t.Errorf("the last answer is %q", text)
	}
}

func TestPositionsOfAStreamAreCompared(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"0-0", "1-0", true}, {"1-0", "1-0", false}, {"9-1", "10-0", true}, {"10-9", "10-10", true}, {"10-10", "10-9", false},
		{"18446744073709551615-18446744073709551615", "1-1", false},
	} {
		if got := isBefore(c.a, c.b); got != c.want {
			t.Errorf("isBefore(%s, %s) is %v", c.a, c.b, got)
		}
	}
	if got := rewind("100000-7") + " " + rewind("5-7") + " " + rewind("0-0"); got != "40000-0 0-0 0-0" {
		t.Error(got)
	}
}

func FuzzCommand(f *testing.F) {
	f.Add("id", "greet", `{"name":"bob"}`, "alice", "1")
	f.Add("{}", "", "[", "\n", "-9999999999999999999")
	m := newMember(f, "gw-a", nil)
	f.Fuzz(func(t *testing.T, id, op, args, by, deadline string) {
		if op == "garble" { // needs Redis
			return
		}
		c, ok := parseCommand(map[string]any{"id": id, "op": op, "args": args, "by": by, "deadline": deadline})
		if ok && (c.ID == "" || strings.ContainsAny(m.answersKey(c.ID), "{}*?[] \r\n\x00")) || len(c.By) > maxText || len(c.Args) > maxArgs {
			t.Errorf("%+v", c)
		}
		text := m.answer(t.Context(), c, time.Now().Add(time.Minute))
		a, ok := parseAnswer(string(text))
		if !ok || len(text) > maxAnswer || a.ID != m.ID || len(a.Error) > maxError {
			t.Errorf("%.300q", text)
		}
		if !slices.Contains([]string{"greet", "panic", "large"}, op) && a.Code != codeUnknown {
			t.Errorf("%q was carried out: %+v", op, a)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(`{"id":"a","name":"gw","version":"1","result":{}}`)
	f.Add(`{"id":"a","code":"other","error":"\u001b"}`)
	f.Fuzz(func(t *testing.T, text string) {
		a, ok := parseAnswer(text)
		if !ok {
			return
		}
		reply := Reply{Answers: []Answer{a}}
		if (a.Code == "") != (reply.Refused() == nil) || (a.Code == "") != json.Valid(a.Result) || strings.ContainsAny(a.Name+a.Version+a.Error, "\x1b\r\n") {
			t.Errorf("%+v", a)
		}
	})
}
