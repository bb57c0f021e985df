package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

const (
	diskMiB     = 4096
	diskUsed    = 1024 // MiB beyond the image
	diskWriting = 10   // MiB a second
)

// measureDiskMoves moves a VE with much on its disk, while it writes more.
func measureDiskMoves(ctx context.Context, m *moves) error {
	s := m.report.section(fmt.Sprintf("A disk that is not shared: %d MiB, %d MiB used beyond the image, %d MiB/s written meanwhile", diskMiB, diskUsed, diskWriting))
	s.columns = []string{"what", "sent MiB", "used + written MiB", "of it while it moved", "memory MiB", "ratio", "aim", "outage ms", "total s"}
	for _, kind := range []struct{ name, model, image string }{{"diskc", "container", serviceImage}, {"diskv", "vm", vmImage}} {
		if err := m.launch(ctx, kind.name, kind.image, "h1", "--model", kind.model, "--disk", strconv.Itoa(diskMiB)+"MiB", "--memory", "512MiB"); err != nil {
			return err
		}
		if _, err := m.ask(ctx, kind.name, "fill", strconv.Itoa(diskUsed)); err != nil {
			return err
		}
		if _, err := m.ask(ctx, kind.name, "write", strconv.Itoa(diskWriting)); err != nil {
			return err
		}
		began := time.Now()
		host, err := m.host(ctx, kind.name)
		if err != nil {
			return err
		}
		r, err := m.moveTo(ctx, kind.name, other(host), "--mode", "live")
		if err != nil {
			return err
		}
		text, err := m.ask(ctx, kind.name, "written")
		if err != nil {
			return err
		}
		count, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return err
		}
		if _, err := m.ask(ctx, kind.name, "write", "0"); err != nil {
			return err
		}
		memory, err := plannedMemory(r.Reason)
		if err != nil {
			return err
		}
		m.say("disk of a %s: moved after %s", kind.model, time.Since(began).Round(time.Millisecond))
		written := count / (1 << 20)
		sent := float64(r.TransferredBytes) / (1 << 20)
		ratio := (sent - memory) / (diskUsed + written)
		s.cells = append(s.cells, []string{
			kind.model, number(sent), number(diskUsed + written), number(written), number(memory), fmt.Sprintf("%.3f", ratio),
			below("1.1", sample{ratio}, 1.1).String(), number(float64(r.OutageMS)), number(float64(r.TotalMS) / 1000),
		})
		if err := m.done(ctx, kind.name); err != nil {
			return err
		}
	}
	s.note("Sent is all that the move has sent; the ratio leaves out the memory, as it was before it was sent (what of it was sent again counts against us).")
	return nil
}

var ofMemory = regexp.MustCompile(`([0-9.]+)(KiB|MiB|GiB) of memory`)

// plannedMemory reads from a move's reason how many MiB of memory there were to send.
func plannedMemory(reason string) (float64, error) {
	m := ofMemory.FindStringSubmatch(reason)
	if m == nil {
		return 0, fmt.Errorf("no memory in %q", reason)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	return n * map[string]float64{"KiB": 1.0 / 1024, "MiB": 1, "GiB": 1024}[m[2]], err
}
