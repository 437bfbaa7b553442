package settings

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
)

// Two packages' settings, and the block that is composed of them.
type (
	counts struct {
		PerUser int           `yaml:"per_user" default:"5" min:"0" max:"100"`
		Total   int           `yaml:"total" default:"7" min:"0" max:"100" global:"true"`
		Delay   time.Duration `yaml:"delay" default:"2s" min:"0s" max:"1m"`
	}
	limits struct {
		Counts   counts         `yaml:"counts"`
		Networks []netip.Prefix `yaml:"networks" default:"127.0.0.0/8"`
	}
	timeouts struct {
		Idle time.Duration `yaml:"idle" default:"30m"`
	}
	block struct {
		timeouts
		Word    string `yaml:"word" default:"a" oneof:"a b"`
		Ignored string `yaml:"-"`
		Dep     func()
	}
)

func names(list []Field) (names []string) {
	for _, f := range list {
		names = append(names, f.Name)
	}
	return names
}

func TestEmbeddedStructsAddTheirKeys(t *testing.T) {
	if got := names(Fields(reflect.TypeFor[block]())); !slices.Equal(got, []string{"idle", "word"}) {
		t.Errorf("%q", got)
	}
}

func TestDefaultsComeFromTheTags(t *testing.T) {
	want := limits{counts{5, 7, 2 * time.Second}, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	if got := Default[limits](); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestAnOverrideInheritsWhatItLeavesOut(t *testing.T) {
	var own limits
	SetDefaults(reflect.ValueOf(&own).Elem(), OverrideFields)
	base := Default[limits]()
	if got := Override(base, own); !reflect.DeepEqual(got, base) {
		t.Errorf("without overrides: %+v", got)
	}
	own.Counts.PerUser, own.Counts.Total, own.Networks = 0, 99, []netip.Prefix{}
	want := limits{counts{0, 7, 2 * time.Second}, []netip.Prefix{}}
	if got := Override(base, own); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	if base.Counts.PerUser != 5 {
		t.Error("the base has changed")
	}
}

func TestGlobalKeysCannotBeOverridden(t *testing.T) {
	list := OverrideFields(reflect.TypeFor[counts]())
	if got := names(list); !slices.Equal(got, []string{"per_user", "delay"}) {
		t.Fatalf("%q", got)
	}
	for value, want := range map[int]string{-2: "is less than -1", -1: "", 0: "", 101: "is more than 100"} {
		if got := list[0].CheckBounds(reflect.ValueOf(value)); got != want {
			t.Errorf("%d: %q", value, got)
		}
	}
}
