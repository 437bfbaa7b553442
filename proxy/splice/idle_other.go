//go:build !linux

package splice

import "sync"

const canPark = false

// idleSet is Linux's; elsewhere pumps keep their goroutines.
type idleSet struct{}

func (*idleSet) open() error            { return nil }
func (*idleSet) close()                 {}
func (*idleSet) run(wg *sync.WaitGroup) { wg.Done() }
func (*idleSet) park(p *pump)           { p.wake() }
func (*idleSet) forget(*pump)           {}
func (*idleSet) len() int               { return 0 }
