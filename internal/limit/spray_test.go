package limit

import (
	"fmt"
	"testing"
	"time"
)

// minuteOf has a watch see one minute of 600 logins, a share of which is wrong, each
// for another user, and says whether spraying was suspected at its end.
func minuteOf(t *testing.T, w *sprayWatch, minute, percent int) bool {
	t.Helper()
	const logins = 200
	began := time.Duration(minute) * time.Minute
	for i := range logins {
		at := began + time.Duration(i)*time.Minute/logins
		if i*percent/100 != (i+1)*percent/100 {
			w.failed(user(t, fmt.Sprintf("tried%d", i)), at)
		} else {
			w.succeeded(at)
		}
	}
	return w.suspects(began + time.Minute - time.Second)
}

func TestWhatAlwaysFailsIsNoSpray(t *testing.T) {
	for _, percent := range []int{10, 30, 60} {
		w, suspected := &sprayWatch{}, 0
		for minute := range 24 * 60 {
			if minuteOf(t, w, minute, percent) {
				suspected++
			}
		}
		// A watch that begins with more than half of them wrong suspects for an hour or so.
		if suspected > 90 || percent <= 30 && suspected > 0 {
			t.Errorf("%d%% of the logins are wrong all day, and spraying is suspected for %d minutes", percent, suspected)
		}
	}
}

func TestASprayIsSuspectedAndNotLearnedWithinTheHour(t *testing.T) {
	w, minute := &sprayWatch{}, 0
	for ; minute < 60; minute++ {
		if minuteOf(t, w, minute, 2) {
			t.Fatalf("suspected in the quiet minute %d", minute)
		}
	}
	for ; minute < 120; minute++ {
		if !minuteOf(t, w, minute, 70) {
			t.Fatalf("not suspected any more in minute %d", minute)
		}
	}
	for minute = 120 + int(sprayKeep/time.Minute); minute < 140; minute++ {
		if minuteOf(t, w, minute, 2) {
			t.Fatalf("still suspected in minute %d, when it is over", minute)
		}
	}
}

func TestANewLevelOfFailuresIsLearned(t *testing.T) {
	w, last := &sprayWatch{}, -1
	for minute := range 24 * 60 {
		percent := 40
		if minute < 60 {
			percent = 2
		}
		if minuteOf(t, w, minute, percent) {
			last = minute
		}
	}
	if last < 60 || last > 6*60 {
		t.Errorf("spraying is suspected until minute %d", last)
	}
}

func TestAGatewayThatStartsUnderASpraySuspectsIt(t *testing.T) {
	w := &sprayWatch{}
	if !minuteOf(t, w, 0, 80) {
		t.Error("eight of ten logins are wrong, and it says nothing")
	}
}
