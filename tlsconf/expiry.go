package tlsconf

import (
	"time"

	"go.uber.org/zap"
)

// expiryWarnings are the times before a certificate's end at which the
// operator hears of it, each once.
var expiryWarnings = [...]time.Duration{21 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// expiry remembers which warnings were given: digest of a pair → how many. Its owner
// guards it.
type expiry map[digest]int

// warn speaks once at each of expiryWarnings. An expired certificate stays in
// service: who connects may know it, and none at all would serve nobody.
func (e expiry) warn(log *zap.Logger, pairs []*pair, now time.Time) {
	for sum := range e {
		if !hasSum(pairs, sum) { // replaced: the next one is counted anew
			delete(e, sum)
		}
	}
	for _, p := range pairs {
		left := p.cert.Leaf.NotAfter.Sub(now)
		level := 0 // how many of the warnings are due
		for level < len(expiryWarnings) && left <= expiryWarnings[level] {
			level++
		}
		if level <= e[p.sum] {
			continue
		}
		e[p.sum] = level
		fields := []zap.Field{zap.String("file", p.files.Cert), zap.Time("not_after", p.cert.Leaf.NotAfter.UTC())}
		if left <= 0 {
			log.Error("certificate has expired", fields...)
		} else {
			log.Warn("certificate expires soon", append(fields, zap.Duration("left", left.Round(time.Hour)))...)
		}
	}
}

func hasSum(pairs []*pair, sum digest) bool {
	for _, p := range pairs {
		if p.sum == sum {
			return true
		}
	}
	return false
}
