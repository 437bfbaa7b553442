package model

import (
	"math/rand/v2"
)

// Faults says what is broken during a run.
type Faults string

// The levels.
const (
	NoFaults      Faults = "none"
	BetweenFaults Faults = "between" // only while no command is in progress
	AllFaults     Faults = "all"
)

// The chances, in a thousand, before each command.
const (
	killChance   = 120
	flightChance = 60
	refuseChance = 3
)

// trouble breaks something before a command, or arranges for it.
func (a *Actor) trouble() {
	w := a.world
	if !a.faulty || w.Faults == NoFaults || w.quiet.Load() {
		return
	}
	if a.rng.IntN(1000) < killChance {
		a.kill()
	}
	if w.Faults != AllFaults {
		return
	}
	if a.rng.IntN(1000) < flightChance {
		f := arbitrary(a.rng)
		w.breaker.Arm(f)
		if f.Fresh {
			w.breaker.KillAll(FIN)
		}
	}
	if a.rng.IntN(1000) < refuseChance {
		w.breaker.Refuse(1 + a.rng.IntN(2))
		w.breaker.KillAll(RST)
	}
}

// kill ends connections while no command is in progress.
func (a *Actor) kill() {
	do := []Action{FIN, RST, Bye}[a.rng.IntN(3)]
	if a.chance(50) {
		a.world.breaker.KillAll(do)
		return
	}
	a.world.breaker.KillOne(do, a.rng.IntN(16))
}

// arbitrary is a fault that hits a command, or what a gateway does for it.
func arbitrary(rng *rand.Rand) Fault {
	do := []Action{FIN, RST, Bye, Stall}[rng.IntN(4)]
	switch rng.IntN(9) {
	case 0:
		return Fault{Lost: true, Do: do % Stall}
	case 1:
		return Fault{Stage: Boundary, Do: do}
	case 2:
		return Fault{Stage: Boundary, Skip: 1 + rng.IntN(4), Do: do}
	case 3:
		return Fault{Stage: InLine, Skip: rng.IntN(80), Do: do}
	case 4:
		return Fault{Stage: InLiteral, Skip: rng.IntN(60), Do: do}
	case 5:
		return Fault{On: " SELECT ", Stage: Stage(rng.IntN(2)), Skip: rng.IntN(8), Do: do}
	case 6:
		return Fault{On: "DONE", Lost: rng.IntN(2) == 0, Do: do % Stall}
	case 7:
		return Fault{Fresh: true, Stage: Boundary, Skip: rng.IntN(14), Do: do}
	}
	return Fault{Fresh: true, Stage: InLine, Skip: rng.IntN(900), Do: do}
}
