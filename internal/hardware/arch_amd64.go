package hardware

// qemuArch is what QEMU calls this architecture.
const qemuArch = "x86_64"
