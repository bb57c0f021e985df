package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"polder/api"
)

// Shape is what a host's cable is like, in both directions. The zero value is a cable as good as the machine makes it.
type Shape struct {
	RateBits    uint64  `json:"rate_bits_per_second,omitempty"` // each way; 0: no limit
	DelayMS     float64 `json:"delay_ms,omitempty"`             // each way
	LossPercent float64 `json:"loss_percent,omitempty"`         // of the packets each way
}

// The queue of a shaped port holds what the link takes in queueTime, as that of a switch does.
const (
	queueTime = 20 * time.Millisecond
	burstTime = 2 * time.Millisecond
	// leastBurst lets a whole segment of 64 KiB through, as network cards hand them on.
	leastBurst = 128 << 10
	leastRate  = 8_000 // bits a second: below, a packet takes seconds
	mostRate   = 400_000_000_000
)

func (s Shape) check() error {
	switch {
	case s.RateBits != 0 && (s.RateBits < leastRate || s.RateBits > mostRate):
		return api.Errorf(api.Invalid, "link rate of %d bits a second: want %d to %d", s.RateBits, leastRate, uint64(mostRate))
	case !(s.DelayMS >= 0 && s.DelayMS <= 10_000):
		return api.Errorf(api.Invalid, "link delay of %g ms: want 0 to 10000", s.DelayMS)
	case !(s.LossPercent >= 0 && s.LossPercent <= 100):
		return api.Errorf(api.Invalid, "link loss of %g %%: want 0 to 100", s.LossPercent)
	}
	return nil
}

// String is what the shape is in the words of the command line; "" for the zero value.
func (s Shape) String() string {
	var parts []string
	if s.RateBits > 0 {
		parts = append(parts, formatRate(s.RateBits))
	}
	if s.DelayMS > 0 {
		parts = append(parts, fmt.Sprintf("%gms", s.DelayMS))
	}
	if s.LossPercent > 0 {
		parts = append(parts, fmt.Sprintf("%g%% lost", s.LossPercent))
	}
	return strings.Join(parts, " ")
}

var rateUnits = []struct {
	name string
	bits uint64
}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

func formatRate(bits uint64) string {
	for _, u := range rateUnits {
		if bits%u.bits == 0 {
			return fmt.Sprint(bits/u.bits, u.name)
		}
	}
	return ""
}

var rateForm = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)(bit|kbit|mbit|gbit)$`)

// ParseRate reads a link rate as tc writes it (1gbit, 2.5mbit), in bits a second. Units are powers of 1000.
func ParseRate(text string) (bits uint64, err error) {
	m := rateForm.FindStringSubmatch(strings.ToLower(text))
	if m == nil {
		return 0, api.Errorf(api.Invalid, `link rate %q: want a number and bit, kbit, mbit or gbit, as in "1gbit"`, text)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	for _, u := range rateUnits {
		if u.name == m[2] {
			n *= float64(u.bits)
		}
	}
	s := Shape{RateBits: uint64(min(math.Round(n), mostRate+1))}
	if err != nil || s.RateBits < leastRate || s.check() != nil {
		return 0, api.Errorf(api.Invalid, "link rate %q: want 8kbit to 400gbit", text)
	}
	return s.RateBits, nil
}

// ParseLoss reads a share of packets in percent, with or without the sign.
func ParseLoss(text string) (percent float64, err error) {
	percent, err = strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || (Shape{LossPercent: percent}).check() != nil {
		return 0, api.Errorf(api.Invalid, `link loss %q: want 0%% to 100%%`, text)
	}
	return percent, nil
}

// Shape makes a host's cable one of the given rate, delay and loss, in both directions, until it is shaped again; the
// zero Shape makes it a plain one. It outlives the host's death. Errors: api.Unsupported for a delay that the machine's
// kernel cannot make.
func (l *Lab) Shape(ctx context.Context, name string, s Shape) error {
	if err := s.check(); err != nil {
		return err
	}
	return l.changeLinks(ctx, name, func(r *record) error {
		was := r.Shapes[name]
		if r.Shapes == nil {
			r.Shapes = map[string]Shape{}
		}
		r.Shapes[name] = s
		if s == (Shape{}) {
			delete(r.Shapes, name)
		}
		err := l.shapePort(r, name)
		if err != nil && was != s {
			r.Shapes[name] = was
			err = errors.Join(err, l.shapePort(r, name))
		}
		return err
	})
}

// shapePort gives the host's port on the switch, when it is there, the rate and delay of the record. Loss is a rule of the
// switch, see rulesOfLinks.
func (l *Lab) shapePort(r *record, name string) error {
	h, err := l.openSwitch()
	if err != nil {
		return err
	}
	defer h.Close()
	port, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil // it is shaped when the host starts
	}
	if err == nil {
		err = shape(h, port, r.Shapes[name])
	}
	if errors.Is(err, unix.ENOENT) && r.Shapes[name].DelayMS > 0 {
		return api.Errorf(api.Unsupported, "delay packets of lab host %s: this machine's kernel has no netem (CONFIG_NET_SCH_NETEM); try: modprobe sch_netem", name)
	}
	if err != nil {
		return api.Errorf(api.Internal, "shape the cable of lab host %s: %w", name, err)
	}
	return nil
}

// shape replaces the queues of a port: its own for what goes to the host, and, as what comes in can't be queued, that of
// a detour that it is sent through.
func shape(h *netlink.Handle, port netlink.Link, s Shape) error {
	if err := unshape(h, port); err != nil {
		return err
	}
	if s.RateBits == 0 && s.DelayMS == 0 {
		return nil
	}
	detour := &netlink.Ifb{LinkAttrs: attrs(detourOf(port))}
	if err := h.LinkAdd(detour); err != nil {
		return err
	}
	if err := setUp(h, detour.Name); err != nil {
		return err
	}
	there, err := h.LinkByName(detour.Name)
	if err != nil {
		return err
	}
	for _, link := range []netlink.Link{port, there} {
		if err := h.QdiscAdd(s.queue(link.Attrs().Index)); err != nil {
			return err
		}
	}
	in := netlink.QdiscAttrs{LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}
	if err := h.QdiscAdd(&netlink.Ingress{QdiscAttrs: in}); err != nil {
		return err
	}
	return h.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: in.LinkIndex, Parent: in.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(there.Attrs().Index)},
	})
}

func detourOf(port netlink.Link) string { return "via-" + port.Attrs().Name }

func unshape(h *netlink.Handle, port netlink.Link) error {
	for _, kind := range []netlink.Qdisc{
		&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}},
		&netlink.GenericQdisc{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: port.Attrs().Index, Parent: netlink.HANDLE_ROOT}},
	} {
		if err := h.QdiscDel(kind); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	detour, err := h.LinkByName(detourOf(port))
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.LinkDel(detour)
}

// queue is what makes packets on their way out of a link late.
func (s Shape) queue(link int) netlink.Qdisc {
	a := netlink.QdiscAttrs{LinkIndex: link, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
	bytes := float64(s.RateBits) / 8 // a second
	if s.DelayMS > 0 {
		const smallPacket, plenty = 500, 1 << 16
		delay := time.Duration(s.DelayMS * float64(time.Millisecond))
		limit := uint32(plenty)
		if s.RateBits > 0 {
			limit = uint32(min(plenty, 100+bytes*(delay+queueTime).Seconds()/smallPacket))
		}
		q := netlink.NewNetem(a, netlink.NetemQdiscAttrs{Latency: uint32(delay.Microseconds()), Limit: limit})
		q.Rate64 = s.RateBits / 8
		return q
	}
	burst := uint32(max(leastBurst, bytes*burstTime.Seconds()))
	return &netlink.Tbf{
		QdiscAttrs: a, Rate: s.RateBits / 8, Limit: burst + uint32(bytes*queueTime.Seconds()),
		Buffer: netlink.Xmittime(s.RateBits/8, burst),
	}
}
