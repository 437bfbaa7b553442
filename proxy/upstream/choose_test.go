package upstream

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"imapgate/internal/identity"
)

// FuzzChoose checks that a choice depends on nothing but the user and the addresses in use. So
// every gateway chooses alike, and an address that leaves moves its own users only.
func FuzzChoose(f *testing.F) {
	f.Add([]byte{1, 1, 1, 2, 2, 1, 1, 9}, uint64(1))
	f.Add([]byte{1, 1}, uint64(2))
	f.Add([]byte{}, uint64(3))
	f.Fuzz(func(t *testing.T, spec []byte, seed uint64) {
		if len(spec) > 64 {
			spec = spec[:64]
		}
		random := rand.New(rand.NewPCG(seed, 0))
		var addresses []AddressSettings
		for i := 0; i+1 < len(spec); i += 2 {
			addresses = append(addresses, AddressSettings{Address: fmt.Sprintf("m%d:143", i), Priority: int(spec[i]%4) + 1, Weight: int(spec[i+1]) + 1})
		}
		var name [8]byte
		binary.BigEndian.PutUint64(name[:], seed)
		u := user(t, fmt.Sprintf("u%x", name))
		ranked := rankNew(t, addresses, u)
		if len(ranked) != len(addresses) {
			t.Fatalf("%d of %d addresses", len(ranked), len(addresses))
		}
		priorities := make(map[string]int)
		for _, a := range addresses {
			priorities[a.Address] = a.Priority
		}
		if !slices.IsSortedFunc(ranked, func(a, b string) int { return priorities[a] - priorities[b] }) {
			t.Errorf("%v is not in the order of %v", ranked, priorities)
		}
		shuffled := slices.Clone(addresses)
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := rankNew(t, shuffled, u); !slices.Equal(again, ranked) {
			t.Errorf("another gateway: %v, not %v", again, ranked)
		}
		if len(addresses) == 0 {
			return
		}
		gone := random.IntN(len(addresses))
		want := slices.DeleteFunc(slices.Clone(ranked), func(a string) bool { return a == addresses[gone].Address })
		if left := rankNew(t, slices.Delete(slices.Clone(addresses), gone, gone+1), u); !slices.Equal(left, want) {
			t.Errorf("without %s: %v, not %v", addresses[gone].Address, left, want)
		}
	})
}

// rankNew returns the order in which a new gateway tries the addresses for a user.
func rankNew(t *testing.T, addresses []AddressSettings, u identity.User) []string {
	t.Helper()
	b := newSeveral(t, func(c *Config) { c.Addresses = addresses })
	return hostPorts(b.choose(b.cfg(), &Request{User: u}, nil).candidates)
}
