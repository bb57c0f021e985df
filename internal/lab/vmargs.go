package lab

import (
	"fmt"
	"path/filepath"
	"strings"

	"polder/api"
)

// The files of an image of VM hosts, made once by makeImage.
const (
	imageKernel = "vmlinuz"
	imageInitrd = "initrd.gz"
	imageRoot   = "root.img" // read only: a host's own files are on its disk
	imageMemory = "memory"   // of the saved machine; hosts have private copies of its pages
	imageState  = "state"    // of its devices and processors
)

const (
	// machineMemory is shared by all hosts, as far as they don't write to it.
	machineMemory = 2 * api.GiB
	machineCPUs   = 2
	// diskFile has what a host writes to its root, and /var/lib/polder.
	diskFile = "disk.img"
	diskSize = 64 * api.GiB
	// poolDisk is the size of the disk that the pool is on: the saved machine knows it already, and the file system may
	// be smaller.
	poolDisk = api.TiB
)

// machine is a QEMU machine: the one that is saved, or a copy of it that is a host. Both have the same devices.
type machine struct {
	image   string // directory
	kvm     bool
	saving  bool   // boots, to be saved; else it starts from the saved state
	dir     string // of what is its own: disk and pool, sockets, console log
	shared  string // the directory that it sees as "lab"
	images  string // the one it sees as "images"
	uuid    string
	network [2]string // -netdev of its cable and of the lab's own way to it, without type and id
}

// kernelArguments: no wait on a console, no reboot after the end of PID 1.
const kernelArguments = "console=ttyS0 quiet loglevel=4 apparmor=0 audit=0 mitigations=off panic=-1 net.ifnames=0"

// args is QEMU's command line.
func (m machine) args() []string {
	accel, cpu := "tcg,thread=multi,tb-size=128", "Nehalem"
	if m.kvm {
		accel, cpu = "kvm", "host"
	}
	share := "off"
	if m.saving {
		share = "on"
	}
	image := func(name string) string { return filepath.Join(m.image, name) }
	disk := func(name, file, more string) []string {
		return []string{"-blockdev", "driver=raw,node-name=" + name + "," + more + ",file.driver=file,file.filename=" + file, "-device", "virtio-blk-pci,drive=" + name}
	}
	const writable = "discard=unmap,cache.no-flush=on" // what QEMU wrote is safe from its own death
	args := []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-uuid", m.uuid,
		"-machine", "q35,memory-backend=memory,usb=off,smbus=off,sata=off,hpet=off",
		"-accel", accel, "-cpu", cpu, "-smp", fmt.Sprint(machineCPUs), "-m", fmt.Sprintf("%dM", machineMemory/api.MiB),
		"-object", fmt.Sprintf("memory-backend-file,id=memory,size=%dM,mem-path=%s,share=%s", machineMemory/api.MiB, image(imageMemory), share),
		"-kernel", image(imageKernel), "-initrd", image(imageInitrd), "-append", kernelArguments,
		"-chardev", "file,id=console,path=" + filepath.Join(m.dir, "log", "console.log"), "-serial", "chardev:console",
		"-chardev", "socket,id=word,server=on,wait=off,path=" + m.wordSocket(),
		"-device", "virtio-serial-pci", "-device", "virtconsole,chardev=word",
		"-qmp", "unix:" + m.qmpSocket() + ",server=on,wait=off",
	}
	args = append(args, disk("root", image(imageRoot), "read-only=on")...)
	args = append(args, disk("disk", filepath.Join(m.dir, diskFile), writable)...)
	args = append(args, disk("pool", filepath.Join(m.dir, poolFile), writable)...)
	for tag, dir := range []string{m.shared, m.images} {
		tag := []string{"lab", "images"}[tag]
		args = append(args, "-fsdev", "local,security_model=passthrough,id="+tag+",path="+dir, "-device", "virtio-9p-pci,fsdev="+tag+",mount_tag="+tag)
	}
	for i, end := range m.network {
		name := []string{"cable", "control"}[i]
		args = append(args, "-netdev", "tap,id="+name+","+end, "-device", "virtio-net-pci,romfile=,id="+name+"-nic,netdev="+name)
	}
	if !m.saving {
		args = append(args, "-incoming", "defer")
	}
	return args
}

func (m machine) qmpSocket() string  { return filepath.Join(m.dir, "run", "qmp.sock") }
func (m machine) wordSocket() string { return filepath.Join(m.dir, "run", "word.sock") }

// checkPaths refuses directories that QEMU's option parser would take apart.
func (m machine) checkPaths() error {
	for _, p := range []string{m.image, m.dir, m.shared, m.images} {
		if strings.ContainsAny(p, ",=") {
			return api.Errorf(api.Invalid, "directory %q: VM hosts take one without commas and equals signs", p)
		}
	}
	return nil
}
