package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// measureContainerMoves moves containers of several sizes live, there and back.
func measureContainerMoves(ctx context.Context, m *moves) error {
	sizes, err := numbers(m.sizes)
	if err != nil {
		return err
	}
	counts, err := numbers(m.counts)
	if err != nil {
		return err
	}
	s := m.report.section("A container moves live")
	s.notes = []string{"By hand: the load as a plain process of the hosts, `criu dump`, tar over the same link, `criu restore`, one after the other; the time from the one's start to the other's end."}
	s.columns = []string{"what", "MiB", "processes", "outage ms", "own ICMP ms", "own UDP ms", "total s", "MiB sent", "aim", "by hand ms", "n", "way"}
	for _, kind := range []struct{ name, what, image string }{
		{"service", "a single service", serviceImage}, {"system", "a full systemd", loadedImage},
	} {
		if err := m.launch(ctx, kind.name, kind.image, "h1", "--memory", "2GiB"); err != nil {
			return err
		}
		host, err := m.host(ctx, kind.name)
		if err != nil {
			return err
		}
		for _, size := range sizes {
			turns := m.turns
			if size > 512 {
				turns = 1
			}
			for _, processes := range counts {
				if _, err := m.ask(ctx, kind.name, "hold", strconv.Itoa(size), strconv.Itoa(processes)); err != nil {
					return err
				}
				var got scores
				var way string
				for range turns {
					r, err := m.moveTo(ctx, kind.name, other(host), "--mode", "live")
					if err != nil {
						m.say("%s, %d MiB, %d processes: %v", kind.what, size, processes, err)
						way = inShort(err)
						break
					}
					host, way = other(host), r.Reason[strings.LastIndex(r.Reason, "; ")+2:]
					got.add(r)
				}
				var hand sample
				if kind.image == serviceImage {
					if hand, err = m.byHand(ctx, size, processes, turns); err != nil {
						return fmt.Errorf("by hand: %w", err)
					}
				}
				m.say("%s, %d MiB, %d processes: %v ms, ICMP %v, UDP %v, by hand %v", kind.what, size, processes, got.outage, got.icmp, got.udp, hand)
				s.cells = append(s.cells, []string{
					kind.what, strconv.Itoa(size), strconv.Itoa(processes), got.outage.String(), got.icmp.String(), got.udp.String(), got.total.String(), got.bytes.String(),
					containerAim(kind.image == serviceImage, size, got.outage).String(), hand.String(), strconv.Itoa(len(got.total)), way,
				})
			}
		}
		if err := m.done(ctx, kind.name); err != nil {
			return err
		}
	}
	return nil
}

// containerAim is what was to be reached; beyond 512 MiB nothing was.
func containerAim(service bool, size int, outage sample) aim {
	switch {
	case service && size == 64:
		return below("300 ms", outage, 300)
	case size == 64:
		return below("500 ms", outage, 500)
	case size == 256:
		return below("700 ms", outage, 700)
	}
	return aim{}
}
