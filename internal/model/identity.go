package model

// Identity lists the files by which a system is known to others, or makes its secrets from: one that was copied must not keep
// those of the system that it was copied from. It makes new ones when it starts without. The machine id, beside these, is an empty file
// then.
func Identity() []string {
	files := []string{
		"/var/lib/dbus/machine-id", "/var/lib/systemd/random-seed", "/var/lib/systemd/credential.secret",
		"/var/lib/cloud/instance", // a link: without it cloud-init takes the system for a new one
	}
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		key := "/etc/ssh/ssh_host_" + kind + "_key"
		files = append(files, key, key+".pub")
	}
	return files
}

// MachineIDFile is where a system has its machine id.
const MachineIDFile = "/etc/machine-id"
