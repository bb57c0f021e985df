package lab

import (
	"slices"
	"strings"
	"testing"

	"polder/api"
)

func TestRatesAndLosses(t *testing.T) {
	for text, want := range map[string]uint64{
		"1gbit": 1e9, "2.5mbit": 2_500_000, "100Mbit": 1e8, "64kbit": 64_000, "9000bit": 9000, "400gbit": 400e9,
	} {
		if got, err := ParseRate(text); got != want || err != nil {
			t.Errorf("rate %q: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "1gb", "-1gbit", "1 gbit", "7kbit", "0gbit", "401gbit", "99999999999999999999999gbit", "NaNgbit", "1e3mbit"} {
		if got, err := ParseRate(text); api.KindOf(err) != api.Invalid {
			t.Errorf("rate %q: got %d, %v", text, got, err)
		}
	}
	for text, want := range map[string]float64{"20%": 20, "0.5": 0.5, "100%": 100, "0": 0} {
		if got, err := ParseLoss(text); got != want || err != nil {
			t.Errorf("loss %q: got %g, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "%", "-1%", "101%", "NaN", "inf"} {
		if got, err := ParseLoss(text); api.KindOf(err) != api.Invalid {
			t.Errorf("loss %q: got %g, %v", text, got, err)
		}
	}
}

func TestShapeInWords(t *testing.T) {
	for want, s := range map[string]Shape{
		"":                    {},
		"1gbit":               {RateBits: 1e9},
		"1500mbit 20% lost":   {RateBits: 1.5e9, LossPercent: 20},
		"2.5ms":               {DelayMS: 2.5},
		"9999bit 1ms 1% lost": {RateBits: 9999, DelayMS: 1, LossPercent: 1},
	} {
		if got := s.String(); got != want {
			t.Errorf("%+v: got %q, want %q", s, got, want)
		}
	}
}

func TestRulesOfLinks(t *testing.T) {
	r := &record{
		Shapes: map[string]Shape{"h2": {LossPercent: 0.5}, "h3": {RateBits: 1e9}},
		Cuts:   [][2]string{{"h1", "h10"}},
	}
	want := `table bridge links
delete table bridge links
table bridge links {
	chain forward {
		type filter hook forward priority 0; policy accept;
		iifname "h1" oifname "h10" drop
		iifname "h10" oifname "h1" drop
		iifname "h2" numgen random mod 1000000 <= 4999 drop
		oifname "h2" numgen random mod 1000000 <= 4999 drop
	}
}
`
	if got := rulesOfLinks(r); got != want {
		t.Errorf("got %s", got)
	}
	if got := rulesOfLinks(&record{}); strings.Contains(got, "chain") {
		t.Errorf("rules without a reason: %s", got)
	}
	if got := r.cutFrom("h10"); !slices.Equal(got, []string{"h1"}) {
		t.Errorf("h10 is cut from %v", got)
	}
}
