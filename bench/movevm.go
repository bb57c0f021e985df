package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	vmMemory   = 512 // MiB
	vmDirtying = 384 // MiB that are written to again and again: more than a round of the fastest can send
)

// measureVMMoves moves a VM that writes memory at several rates, by Polder and by virsh in turn.
func measureVMMoves(ctx context.Context, m *moves) error {
	v, err := m.newVirsh(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = v.destroy(context.WithoutCancel(ctx)) }()
	if err := m.launch(ctx, "vm", vmImage, "h1", "--model", "vm", "--memory", strconv.Itoa(vmMemory)+"MiB", "--disk", strconv.Itoa(diskMiB)+"MiB"); err != nil {
		return err
	}
	if _, err := m.ask(ctx, "vm", "hold", strconv.Itoa(vmDirtying), "1"); err != nil {
		return err
	}
	if err := v.boot(ctx); err != nil {
		return err
	}
	s := m.report.section("A VM moves live while it writes memory")
	s.columns = []string{"writes", "who", "outage ms", "own ICMP ms", "own UDP ms", "total s", "MiB over the link", "aim", "n", "way"}
	host, err := m.host(ctx, "vm")
	if err != nil {
		return err
	}
	shares, err := numbers(m.rates)
	if err != nil {
		return err
	}
	for _, share := range shares {
		percent := strconv.Itoa(share)
		rate := strconv.Itoa(linkMiB * share / 100)
		if _, err := m.ask(ctx, "vm", "dirty", rate); err != nil {
			return err
		}
		var ours scores
		var way string
		for range m.vmTurns {
			before, err := m.sentBy(ctx, host)
			if err != nil {
				return err
			}
			r, err := m.moveTo(ctx, "vm", other(host), "--mode", "auto")
			if err != nil {
				m.say("vm at %s %%: %v", percent, err)
				way = inShort(err)
				break
			}
			after, err := m.sentBy(ctx, host)
			if err != nil {
				return err
			}
			host, way = other(host), r.Reason[strings.LastIndex(r.Reason, "; ")+2:]
			ours.add(r)
			ours.bytes[len(ours.bytes)-1] = (after - before) / (1 << 20)
		}
		if _, err := m.ask(ctx, "vm", "dirty", "0"); err != nil {
			return err
		}
		m.say("vm, %s %%: polder %v ms, %v s, %v MiB", percent, ours.outage, ours.total, ours.bytes)
		s.cells = append(s.cells, ours.line(percent+" %", "Polder, auto", vmAim(share, ours.outage).String(), way))
		if _, err := v.ask(ctx, "dirty", rate); err != nil {
			return err
		}
		for _, how := range virshWays {
			var theirs scores
			var end string
			for range m.vmTurns {
				r, err := v.migrate(ctx, how.flags)
				if err != nil {
					end = inShort(err)
					break
				}
				if r.gaveUp {
					end = fmt.Sprintf("not across after %s", m.budget)
					break
				}
				theirs.add(r.moved)
			}
			m.say("vm, %s %%: virsh %s %v ms, %v s, %v MiB %s", percent, how.name, theirs.icmp, theirs.total, theirs.bytes, end)
			theirs.outage = nil
			s.cells = append(s.cells, theirs.line(percent+" %", "virsh, "+how.name, "", end))
		}
		if _, err := v.ask(ctx, "dirty", "0"); err != nil {
			return err
		}
	}
	s.note("%% of %d MiB/s, which a link of 1 Gb/s carries. VM: %d MiB, 1 CPU, emulated, Debian's kernel and nothing but the load, the same image, disk of %d MiB and QEMU for both; %d MiB are written to in turn.", linkMiB, vmMemory, diskMiB, vmDirtying)
	s.note("Disks go along on both sides: virsh with --copy-storage-inc onto an overlay on the same base. Polder's streams are encrypted, virsh's are not.")
	s.note("MiB over the link: by the counter of the source's network card, disk and headers included.")
	return m.done(ctx, "vm")
}

func (s scores) line(writes, who, aim, way string) []string {
	return []string{writes, who, s.outage.String(), s.icmp.String(), s.udp.String(), s.total.String(), s.bytes.String(), aim, strconv.Itoa(len(s.total)), way}
}

func vmAim(share int, outage sample) aim {
	switch share {
	case 0:
		return below("50 ms", outage, 50)
	case 25, 50:
		return below("300 ms", outage, 300)
	}
	return aim{"gets across", len(outage) > 0}
}

// sentBy is how many bytes a host has sent over its cable.
func (m *moves) sentBy(ctx context.Context, host string) (float64, error) {
	out, err := m.at(ctx, host, "cat", "/sys/class/net/eth0/statistics/tx_bytes")
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(out), 64)
}

// at runs a command in a host.
func (m *moves) at(ctx context.Context, host string, argv ...string) (string, error) {
	return m.cli(ctx, append([]string{"lab", "exec", host, "--"}, argv...)...)
}

// describe says where, and with what, it was measured.
func (m *moves) describe(ctx context.Context) ([]string, error) {
	machine, err := machineLine()
	if err != nil {
		return nil, err
	}
	hosts, err := m.client.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	versions := []version{
		{"Polder", func() (string, error) { return hosts[0].Version, nil }},
		{"QEMU", func() (string, error) { return m.at(ctx, "h1", "qemu-system-x86_64", "--version") }},
		{"crun", func() (string, error) { return m.at(ctx, "h1", "crun", "--version") }},
		{"CRIU", func() (string, error) { return m.at(ctx, "h1", "criu", "--version") }},
	}
	if _, err := os.Stat(filepath.Join(m.lab(), "shared", virshBase)); err == nil {
		versions = append(versions, version{"libvirt", func() (string, error) { return m.at(ctx, "h1", "virsh", "--version") }})
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	told, err := told(versions)
	if err != nil {
		return nil, err
	}
	load, err := loadNow()
	if err != nil {
		return nil, err
	}
	return []string{
		machine + "; VMs are emulated (no KVM)", told, "load at the beginning: " + m.loadBefore + "; at the end: " + load,
		"links between the hosts: " + linkRate + ", by tbf; outage: Polder's own, seen from h3 each 5 ms; own ICMP and UDP: the bench's prober, in a VE (virsh: beside the guest's network) on h3",
	}, nil
}
