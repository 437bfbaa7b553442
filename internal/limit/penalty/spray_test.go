package penalty

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// runMinute makes 200 logins in one minute. A percentage of them fail, each of another user. It
// reports whether spraying is suspected at the end.
func runMinute(t *testing.T, s *SprayAlert, percent int) bool {
	t.Helper()
	const logins = 200
	for i := range logins {
		if i*percent/100 != (i+1)*percent/100 {
			s.Failed(user(t, fmt.Sprintf("tried%d", i)))
		} else {
			s.Succeeded()
		}
		time.Sleep(time.Minute / logins)
	}
	return s.Suspected()
}

func user(t testing.TB, name string) identity.User {
	t.Helper()
	return testkit.Must(identity.Canonicalize(name, "example.org"))(t)
}

func newAlert() *SprayAlert { return NewSprayAlert(func(Spray) {}) }

func TestConstantFailuresAreNoSpray(t *testing.T) {
	for _, percent := range []int{10, 30, 60} {
		synctest.Test(t, func(t *testing.T) {
			s, suspected := newAlert(), 0
			for range 6 * 60 {
				if runMinute(t, s, percent) {
					suspected++
				}
			}
			// If more than half of the logins fail from the start, spraying is suspected for a while.
			if suspected > 90 || percent <= 30 && suspected > 0 {
				t.Errorf("%d%% of the logins always fail, and spraying is suspected for %d minutes", percent, suspected)
			}
		})
	}
}

func TestSprayIsSuspectedForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newAlert()
		for minute := range 60 {
			if runMinute(t, s, 2) {
				t.Fatalf("suspected in the quiet minute %d", minute)
			}
		}
		for minute := range 60 {
			if !runMinute(t, s, 70) {
				t.Fatalf("no longer suspected in minute %d", minute)
			}
		}
		for minute := range 20 {
			if runMinute(t, s, 2) && minute >= int(sprayKept/time.Minute) {
				t.Fatalf("still suspected %d minutes after its end", minute)
			}
		}
	})
}

func TestNewLevelOfFailuresBecomesUsual(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, last := newAlert(), -1
		for minute := range 12 * 60 {
			percent := 40
			if minute < 60 {
				percent = 2
			}
			if runMinute(t, s, percent) {
				last = minute
			}
		}
		if last < 60 || last > 6*60 {
			t.Errorf("spraying is suspected until minute %d", last)
		}
	})
}

func TestSprayAtStartIsSuspected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if !runMinute(t, newAlert(), 80) {
			t.Error("eight of ten logins fail, and spraying is not suspected")
		}
	})
}
