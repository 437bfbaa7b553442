package limit

// BanCount is how many networks are banned, as far as this gateway knows.
func (g *Limiter) BanCount() (n int) {
	t := g.now()
	g.bans.mu.RLock()
	defer g.bans.mu.RUnlock()
	for _, e := range g.bans.nets {
		if e.until > t {
			n++
		}
	}
	return n
}

// CountersInUse is how many places are taken at this gateway; none while nobody is in.
func (g *Limiter) CountersInUse() (n int) {
	g.places.mu.Lock()
	defer g.places.mu.Unlock()
	for _, h := range g.places.held {
		n += int(h.n)
	}
	return n
}
