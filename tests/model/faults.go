package model

import (
	"math/rand/v2"
)

// FaultLevel selects the faults of a run.
type FaultLevel string

// The levels.
const (
	NoFaults      FaultLevel = "none"
	BetweenFaults FaultLevel = "between" // only while no command is in progress
	AllFaults     FaultLevel = "all"
)

// The chances per command, in a thousand.
const (
	killChance     = 120
	moveChance     = 200
	inFlightChance = 60
	refuseChance   = 3
)

// injectFaults moves sessions and kills connections before a command, or arms a fault for
// it.
func (a *Client) injectFaults() {
	w := a.sim
	if a.viaFaultProxy && w.moveSome != nil && a.rng.IntN(1000) < moveChance {
		w.stats.update(func(s *Stats) { s.Moves++ })
		w.moveSome(a.rng)
	}
	if !a.viaFaultProxy || w.Faults == NoFaults || w.faultsPaused.Load() {
		return
	}
	if a.rng.IntN(1000) < killChance {
		a.killConns()
	}
	if w.Faults != AllFaults {
		return
	}
	if a.rng.IntN(1000) < inFlightChance {
		f := randomFault(a.rng)
		w.faultProxy.Arm(f)
		if f.NextConn {
			w.faultProxy.KillAll(FIN)
		}
	}
	if a.rng.IntN(1000) < refuseChance {
		w.faultProxy.RefuseNext(1 + a.rng.IntN(2))
		w.faultProxy.KillAll(RST)
	}
}

// killConns kills one or all connections while no command is in progress.
func (a *Client) killConns() {
	do := []Action{FIN, RST, Bye}[a.rng.IntN(3)]
	if a.chance(50) {
		a.sim.faultProxy.KillAll(do)
		return
	}
	a.sim.faultProxy.KillOne(do, a.rng.IntN(16))
}

// randomFault returns a fault that hits a command, or the gateway's own commands for it.
func randomFault(rng *rand.Rand) Fault {
	do := []Action{FIN, RST, Bye, Stall}[rng.IntN(4)]
	switch rng.IntN(9) {
	case 0:
		return Fault{DropCommand: true, Action: do % Stall}
	case 1:
		return Fault{Point: Boundary, Action: do}
	case 2:
		return Fault{Point: Boundary, Skip: 1 + rng.IntN(4), Action: do}
	case 3:
		return Fault{Point: InLine, Skip: rng.IntN(80), Action: do}
	case 4:
		return Fault{Point: InLiteral, Skip: rng.IntN(60), Action: do}
	case 5:
		return Fault{Match: " SELECT ", Point: FaultPoint(rng.IntN(2)), Skip: rng.IntN(8), Action: do}
	case 6:
		return Fault{Match: "DONE", DropCommand: rng.IntN(2) == 0, Action: do % Stall}
	case 7:
		return Fault{NextConn: true, Point: Boundary, Skip: rng.IntN(14), Action: do}
	}
	return Fault{NextConn: true, Point: InLine, Skip: rng.IntN(900), Action: do}
}
