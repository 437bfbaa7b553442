//go:build unix

package fleet

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestStatesOfAddressesReachAllGatewaysAndLast(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	want := AddressState{Backend: "east", Address: "127.0.0.1:993", State: "draining", By: "alice"}
	testkit.NoError(t, a.SetAddressState(t.Context(), want))
	b.Announce()
	for _, m := range []*member{a, b, join(t, "gw-c", dial(t, r.Address))} {
		if got := <-m.states; got.key() != want.key() || got.State != "draining" || got.By != "alice" {
			t.Errorf("%+v", got)
		}
	}
	r.CLI("HSET", "imapgate:address_states", "west a:1", "sleepy", "nonsense", "{", "", "disabled", "west c:1", strings.Repeat("x", maxStateText+1),
		"west "+strings.Repeat("x", maxText+1), "disabled", "west d:\x1b", "disabled", "west b:1", "disabled")
	b.Announce()
	if got := <-b.states; got.Address != "b:1" || got.State != "disabled" {
		t.Errorf("%+v", got)
	}
	testkit.NoError(t, a.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "127.0.0.1:993"}))
	b.Announce()
	if got := <-b.states; got.State != "" || got.key() != want.key() {
		t.Errorf("%+v", got)
	}
	for _, bad := range []AddressState{
		{Backend: "east", Address: "x:1", State: "sleepy"}, {Backend: "a b", Address: "x:1"}, {Backend: "east"}, {Address: "x:1"},
		{Backend: "east", Address: "x\n:1"}, {Backend: "east", Address: strings.Repeat("x", maxText+1)},
	} {
		if err := a.SetAddressState(t.Context(), bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
		a.ApplyAddressState(bad) // as a command of another gateway would
	}
	testkit.Eventually(t, "all know the same", func() bool {
		return len(a.AddressStates()) == 1 && len(b.AddressStates()) == 1 && a.AddressStates()[0].Address == "b:1"
	})
}

// A Redis that has lost its keys does not bring back an address that an operator has disabled.
func TestStatesOfAddressesOutlastTheLossOfRedis(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	for _, address := range []string{"x:1", "y:1"} {
		testkit.NoError(t, a.SetAddressState(t.Context(), AddressState{Backend: "east", Address: address, State: "disabled", By: "alice"}))
	}
	b.Announce()
	<-b.states
	<-b.states
	isThere := func() bool {
		text, err := a.redis.HGet(t.Context(), "imapgate:address_states", "east x:1").Result()
		return err == nil && strings.Contains(text, `"disabled"`) && strings.Contains(text, "alice")
	}
	for what, lose := range map[string]func(){
		"flushed": func() { r.CLI("FLUSHALL") },
		"empty":   r.RestartEmpty,
		"made again by a gateway that knows nothing": func() {
			r.CLI("FLUSHALL")
			testkit.NoError(t, newMember(t, "gw-new", dial(t, r.Address)).SetAddressState(t.Context(), AddressState{Backend: "west", Address: "z:1"}))
		},
	} {
		lose()
		testkit.Eventually(t, what+", and the states are there again", isThere)
	}
	// A resumed address stays so, also where a gateway does not know yet.
	for _, address := range []string{"x:1", "y:1"} {
		testkit.NoError(t, b.SetAddressState(t.Context(), AddressState{Backend: "east", Address: address}))
	}
	testkit.NoError(t, a.loadStates(t.Context()))
	testkit.NoError(t, b.loadStates(t.Context()))
	for _, m := range []*member{a, b} {
		if got := m.AddressStates(); len(got) != 0 {
			t.Errorf("%s: %+v", m.Name, got)
		}
	}
	if got := r.CLI("HGET", "imapgate:address_states", "east x:1"); !strings.Contains(got, `"state":"up"`) {
		t.Errorf("a resumed address is %s in Redis", got)
	}
}

func TestWhatWasReadBeforeAChangeDoesNotUndoIt(t *testing.T) {
	t.Parallel()
	m := newMember(t, "gw-a", nil)
	changes := m.Fleet.states.countChanges()
	m.ApplyAddressState(AddressState{Backend: "east", Address: "x:1", State: "disabled"})
	if m.replaceStates(nil, changes) || len(m.AddressStates()) != 1 {
		t.Errorf("%+v", m.AddressStates())
	}
	changes = m.Fleet.states.countChanges()
	if !m.replaceStates(nil, changes) || len(m.AddressStates()) != 0 {
		t.Errorf("%+v", m.AddressStates())
	}
}

func TestStatesHaveABound(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := newMember(t, "gw-a", dial(t, r.Address))
	r.CLI("EVAL", "for i = 1, 20000 do redis.call('HSET', 'imapgate:address_states', 'east a:' .. i, 'disabled') end", "0")
	if err := m.loadStates(t.Context()); err == nil || len(m.AddressStates()) != 0 {
		t.Errorf("%v, %d states", err, len(m.AddressStates()))
	}
	for i := range maxStates {
		m.Fleet.states.set(AddressState{Backend: "east", Address: time.Duration(i).String(), State: "disabled"})
	}
	if err := m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "one more", State: "disabled"}); err == nil {
		t.Error("a state that this gateway cannot keep is recorded")
	}
}
