//go:build !amd64

package vm

import "polder/api"

func remoteCall(int, uint64, [6]uint64) (uint64, error) {
	return 0, api.Errorf(api.Unsupported, "running VMs can be forked on x86-64 only")
}
