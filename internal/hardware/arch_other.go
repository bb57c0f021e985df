//go:build !amd64

package hardware

// qemuArch is what QEMU calls this architecture.
const qemuArch = "aarch64"
