package tlsconf

import (
	"time"

	"go.uber.org/zap"
)

// expiryThresholds are the times left before a certificate expires at which a warning is
// logged, each once.
var expiryThresholds = [...]time.Duration{21 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// expiryWarner maps the checksum of a pair to the number of warnings logged. The owner guards
// it.
type expiryWarner map[checksum]int

// warnExpiring logs once at each of expiryThresholds. An expired certificate stays in service:
// some clients may accept it, and without one no client could connect.
func (e expiryWarner) warnExpiring(log *zap.Logger, pairs []*keyPair, now time.Time) {
	for sum := range e {
		if !containsChecksum(pairs, sum) { // replaced: its successor starts at zero
			delete(e, sum)
		}
	}
	for _, p := range pairs {
		left := p.cert.Leaf.NotAfter.Sub(now)
		level := 0 // number of warnings due
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
