// Package duration parses and formats durations in one notation for the command line, the
// configuration and the admin address.
package duration

import (
	"fmt"
	"math"
	"strings"
	"time"
)

const day = 24 * time.Hour

// Parse is time.ParseDuration with the additional units days (24 hours) and weeks: 7d, 2w,
// 1d12h. The error quotes s.
func Parse(s string) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return d, nil
	}
	rest, sign := s, time.Duration(1)
	if after, negative := strings.CutPrefix(s, "-"); negative {
		rest, sign = after, -1
	}
	var total time.Duration
	for first := true; first || rest != ""; first = false {
		number := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		unit := strings.IndexAny(rest[number:]+"0", "0123456789.")
		one, err := parseTerm(rest[:number], rest[number:number+unit])
		if err != nil || number == 0 || total > math.MaxInt64-one {
			return 0, fmt.Errorf("%q is not a duration such as 90s, 10m, 24h or 7d", s)
		}
		total += one
		rest = rest[number+unit:]
	}
	return sign * total, nil
}

// parseTerm parses one unsigned number with its unit.
func parseTerm(number, unit string) (time.Duration, error) {
	switch unit {
	case "d":
		return multiply(number, day)
	case "w":
		return multiply(number, 7*day)
	}
	return time.ParseDuration(number + unit)
}

func multiply(number string, unit time.Duration) (time.Duration, error) {
	hours, err := time.ParseDuration(number + "h")
	per := unit / time.Hour
	if err == nil && hours > math.MaxInt64/per {
		err = fmt.Errorf("%s is too long", unit)
	}
	return hours * per, err
}

// Format returns d for people: from 10 s on in tenths of a second, without units that are zero
// at its end. Parse reads it.
func Format(d time.Duration) string {
	if d >= 10*time.Second {
		d = d.Round(100 * time.Millisecond)
	}
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-len("0s")]
		}
	}
	return s
}
