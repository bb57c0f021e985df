package vm

import (
	"strconv"
	"strings"

	"polder/api"
	"polder/internal/model"
)

// offer is what a host has for a VE's QEMU.
type offer struct {
	KVM      bool
	VhostNet bool   // the kernel moves packets; only with KVM
	Firmware string // directory of OVMF
	Incoming bool   // the VE comes from another host: it waits for that
}

// Descriptors that QEMU inherits: the first after standard error, in this order; see inherit.
const (
	fdQMP = 3 + iota
	fdConsole
	fdAgent
	fdMove
	fdKVM    // of /dev/null without KVM
	fdMemory // see makeMemory
	fdNIC    // the first NIC's tap; then vhost-net when offered; then the next NIC's
)

// tbSize in MiB bounds the translated code that TCG keeps: 256 MiB hold all that a system runs at boot, where the default
// of 1 GiB would be charged to the VE.
const tbSize = 256

// arguments is QEMU's command line without the program's name. It depends on nothing but its parameters.
//
//   - Memory is a memfd that QEMU takes for a file it was given by name, and shares: so its migration can leave the memory where it
//     is (x-ignore-shared), for a fork to map it. A file in a tmpfs would be limited by that tmpfs' size, and stay behind when the
//     host's daemon and QEMU die together. What the backend is may differ between the ends of a move: only its id counts.
//   - The disk goes through the host's page cache, with the flushes that the system inside asks for: on copy-on-write file
//     systems direct I/O breaks checksums or is not possible, and the disk is never shared between hosts. So aio=threads
//     (native needs direct I/O). No iothread: a disk that is mirrored or exported for a move then stays in one event loop.
//   - NICs sit behind root ports, so that one can be unplugged and plugged while the VE runs.
//   - The seed is a read-only virtio disk, not a CD: initrds that were trimmed for virtio find it, and so does cloud-init,
//     which goes by the label.
func arguments(ve model.Spec, m machine, h offer) []string {
	args := []string{
		"-name", "guest=" + ve.Name + ",debug-threads=on",
		"-no-user-config", "-nodefaults", "-display", "none",
		"-msg", "timestamp=on",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-pidfile", pidFile(ve),
		// A panic inside is a failure, also for the restart policy; a reboot stays in this process.
		"-action", "reboot=reset,shutdown=poweroff,panic=exit-failure",
	}
	args = append(args, accelerator(h)...)
	args = append(args, board(ve, m, h)...)
	args = append(args, identity(ve, m)...)
	args = append(args, channels(ve)...)
	args = append(args, disks(ve)...)
	if h.Incoming {
		args = append(args, "-S", "-incoming", "defer")
	}
	for i, nic := range ve.NICs {
		args = append(args, netdev(i, nic, h)...)
	}
	return args
}

func accelerator(h offer) []string {
	if h.KVM {
		return []string{"-add-fd", "set=1,fd=" + strconv.Itoa(fdKVM), "-accel", "kvm,device=/dev/fdset/1"}
	}
	return []string{"-accel", "tcg,thread=multi,tb-size=" + strconv.Itoa(tbSize)}
}

func board(ve model.Spec, m machine, h offer) []string {
	memory := strconv.FormatInt(memorySize(ve)>>20, 10) + "M"
	machine := m.Machine + ",memory-backend=ram0,smm=off,vmport=off"
	cpus := strconv.Itoa(ve.CPUs)
	args := []string{
		"-cpu", m.CPU,
		"-smp", "cpus=" + cpus + ",sockets=1,cores=" + cpus + ",threads=1",
		"-m", "size=" + memory,
		"-object", "memory-backend-file,id=ram0,share=on,mem-path=/proc/self/fd/" + strconv.Itoa(fdMemory) + ",size=" + memory,
		"-rtc", "base=utc",
		"-boot", "strict=on",
	}
	if ve.Firmware == api.UEFI {
		machine += ",pflash0=firmware,pflash1=vars"
		args = append(args,
			"-blockdev", options("driver=file", "node-name=firmware", "filename="+h.Firmware+"/OVMF_CODE_4M.fd", "read-only=on"),
			"-blockdev", options("driver=file", "node-name=vars", "filename="+varsFile(ve)))
	}
	return append([]string{"-machine", machine}, args...)
}

// identity is what makes the system inside differ from others of its image.
func identity(ve model.Spec, m machine) []string {
	return []string{
		"-uuid", ve.ID,
		"-smbios", "type=1,manufacturer=Polder,product=VE",
		// systemd takes the host name from here (v256 and later), and the machine id (v254).
		"-smbios", options("type=11", "value=io.systemd.credential:system.hostname="+ve.Name,
			"value=io.systemd.credential:system.machine_id="+strings.ReplaceAll(ve.ID, "-", "")),
		"-device", "vmgenid,guid=" + m.Generation,
	}
}

func channels(ve model.Spec) []string {
	socket := func(id string, fd int, more ...string) string {
		return options(append([]string{"socket", "id=" + id, "fd=" + strconv.Itoa(fd), "server=on", "wait=off"}, more...)...)
	}
	return []string{
		"-chardev", socket("qmp", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", socket("move", fdMove), "-mon", "chardev=move,mode=control",
		"-chardev", socket("console", fdConsole, "logfile="+ve.LogPath(), "logappend=on"),
		"-device", "isa-serial,id=console0,chardev=console",
		"-device", "virtio-serial-pci,id=serial0,addr=0x3",
		"-chardev", socket("agent", fdAgent),
		"-device", "virtserialport,bus=serial0.0,id=agent0,chardev=agent,name=org.qemu.guest_agent.0",
		"-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,id=rng,rng=rng0,addr=0x4",
		"-device", "pvpanic-pci,id=panic,addr=0x5",
	}
}

func disks(ve model.Spec) []string {
	args := []string{
		"-blockdev", options("driver=file", "node-name=disk0-file", "filename="+ve.Root.Disk, "aio=threads", "discard=unmap", "cache.direct=off"),
		"-blockdev", "driver=" + ve.Root.Format + ",node-name=disk0,file=disk0-file,discard=unmap",
		"-device", "virtio-blk-pci,id=root,drive=disk0,bootindex=0,addr=0x6",
	}
	if ve.CloudInit.UserData != "" {
		args = append(args,
			"-blockdev", options("driver=file", "node-name=seed-file", "filename="+seedFile(ve), "read-only=on"),
			"-blockdev", "driver=raw,node-name=seed,file=seed-file,read-only=on",
			"-device", "virtio-blk-pci,id=seed,drive=seed,addr=0x7")
	}
	return args
}

// netdev is the i-th NIC. It boots nothing, so it has no option ROM, which would cost time at every boot.
func netdev(i int, nic model.NIC, h offer) []string {
	n := strconv.Itoa(i)
	step := 1
	backend := "tap,id=net" + n
	if h.VhostNet {
		step = 2
	}
	fd := fdNIC + i*step
	backend += ",fd=" + strconv.Itoa(fd)
	if h.VhostNet {
		backend += ",vhost=on,vhostfd=" + strconv.Itoa(fd+1)
	}
	device := "virtio-net-pci,id=nic" + n + ",netdev=net" + n + ",bus=port" + n + ",romfile=,mac=" + nic.MAC
	if nic.MTU > 0 {
		device += ",host_mtu=" + strconv.Itoa(nic.MTU)
	}
	return []string{
		"-device", "pcie-root-port,id=port" + n + ",chassis=" + strconv.Itoa(i+1) + ",addr=0x" + strconv.FormatInt(int64(0x10+i), 16),
		"-netdev", backend,
		"-device", device,
	}
}

// options joins an option's parts; QEMU reads a doubled comma as one.
func options(parts ...string) string {
	escaped := make([]string, len(parts))
	for i, p := range parts {
		escaped[i] = strings.ReplaceAll(p, ",", ",,")
	}
	return strings.Join(escaped, ",")
}
