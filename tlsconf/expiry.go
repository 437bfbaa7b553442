package tlsconf

import (
	"time"

	"go.uber.org/zap"
)

// expiryThresholds are the times before a certificate's end at which the
// operator hears of it, each once.
var expiryThresholds = [...]time.Duration{21 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// expiryWarner remembers which warnings were given: digest of a pair → how many. Its owner
// guards it.
type expiryWarner map[checksum]int

// warnExpiring speaks once at each of expiryThresholds. An expired certificate stays in
// service: who connects may know it, and none at all would serve nobody.
func (e expiryWarner) warnExpiring(log *zap.Logger, pairs []*keyPair, now time.Time) {
	for sum := range e {
		if !containsChecksum(pairs, sum) { // replaced: the next one is counted anew
			delete(e, sum)
		}
	}
	for _, p := range pairs {
		left := p.cert.Leaf.NotAfter.Sub(now)
		level := 0 // how many of the warnings are due
		for level < len(expiryThresholds) && left <= expiryThresholds[level] {
			level++
		}
		if level <= e[p.checksum] {
			continue
		}
		e[p.checksum] = level
		fields := []zap.Field{zap.String("file", p.files.Cert), zap.Time("not_after", p.cert.Leaf.NotAfter.UTC())}
		if left <= 0 {
			log.Error("certificate has expired", fields...)
		} else {
			log.Warn("certificate expires soon", append(fields, zap.Duration("left", left.Round(time.Hour)))...)
		}
	}
}

func containsChecksum(pairs []*keyPair, sum checksum) bool {
	for _, p := range pairs {
		if p.checksum == sum {
			return true
		}
	}
	return false
}
