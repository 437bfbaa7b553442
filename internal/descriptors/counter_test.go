package descriptors

import (
	"math/rand/v2"
	"testing"
)

// model is an independent count of what a Counter counts: sessions, idle connections and
// extras.
type model struct {
	*Counter
	clients, backends, extras, idle int64
}

func newModel(limit int64) *model {
	w := &model{Counter: New(limit)}
	w.SetEvict(func() bool {
		if w.idle == 0 {
			return false
		}
		w.idle--
		w.RemoveBackend()
		return true
	})
	return w
}

// step does one random action, if it is possible.
func (w *model) step(what int) {
	switch {
	case what == 0: // a client connects
		if !w.AddClient() {
			w.RemoveClient()
			return
		}
		w.EvictIdle()
		w.clients++
	case what == 1 && w.clients > w.backends: // … and disconnects
		w.RemoveClient()
		w.clients--
	case what == 2 && w.clients > w.backends: // logs in, or reconnects after a loss
		w.AddBackend()
		w.backends++
	case what == 3 && w.backends > 0: // loses its upstream
		w.RemoveBackend()
		w.backends--
	case what == 4 && w.backends > 0: // releases its upstream to the pool
		w.backends--
		w.idle++
	case what == 5 && w.AddExtra():
		w.AddBackend()
		w.extras++
	case what == 6 && w.extras > 0: // an extra becomes idle
		w.RemoveExtra()
		w.extras--
		w.idle++
	}
}

// After any sequence of actions, the open sockets fit the limit, and each client can have a
// connection to its backend.
func TestOpenSocketsFitAndClientsKeepSecond(t *testing.T) {
	const limit = Reserved + 20
	rng := rand.New(rand.NewPCG(1, 0))
	for range 200 {
		w := newModel(limit)
		for range 500 {
			w.step(rng.IntN(7))
			switch open := w.clients + w.backends + w.extras + w.idle; {
			case open != w.Open():
				t.Fatalf("%d are open, and %d are counted", open, w.Open())
			case open > limit-Reserved:
				t.Fatalf("%+v are open", w)
			case 2*w.clients+w.extras > limit-Reserved:
				t.Fatalf("%+v have no room for their backend connection", w)
			}
		}
	}
}

func TestClientNeedsTwoDescriptors(t *testing.T) {
	for limit, want := range map[int64]int64{0: 1, 64: 1, 66: 1, 67: 1, 68: 2, 300: 118, 1 << 20: (1<<20 - 64) / 2} {
		if got := MaxClients(limit); got != want {
			t.Errorf("a limit of %d has %d slots, want %d", limit, got, want)
		}
	}
	if n := Limit(); n < 1 {
		t.Errorf("the process may have %d descriptors", n)
	}
}
