package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"polder/api"
	"polder/internal/command"
	"polder/internal/model"
)

// ForgetIdentity removes what the system on a disk is known by, for a disk that was copied from another VE's: it makes a new one when it
// boots. The disk is used by nobody; its file system is as after a halt, or a power cut. A disk that is not one of ours, or not raw, is
// api.Precondition.
func ForgetIdentity(ctx context.Context, path, format string) error {
	if err := forgetIdentity(ctx, path, format); err != nil {
		return fmt.Errorf("remove the identity from disk %s: %w", filepath.Base(filepath.Dir(path)), err)
	}
	return nil
}

func forgetIdentity(ctx context.Context, path, format string) error {
	if format != "raw" {
		return api.Errorf(api.Precondition, "a disk of format %s can't be changed while nobody runs it: use a pool whose file system shares blocks between files (btrfs, xfs), or start the VE and fork it with --live", format)
	}
	start, _, err := rootOf(path)
	if err != nil {
		return fmt.Errorf("%w; start the VE and fork it with --live", err)
	}
	system := fmt.Sprintf("%s?offset=%d", path, start)
	// Its journal first: what debugfs writes would be overwritten from that.
	if _, err := command.Run(ctx, nil, "e2fsck", "-p", "-E", "journal_only", system); err != nil {
		return err
	}
	script := ""
	for _, name := range model.Identity() {
		script += "rm " + name + "\n" // complains of one that is not there
	}
	script += "rm " + model.MachineIDFile + "\nwrite /dev/null " + model.MachineIDFile + "\nset_inode_field " + model.MachineIDFile + " mode 0100444\n"
	if _, err := command.Run(ctx, strings.NewReader(script), "debugfs", "-w", "-f", "-", system); err != nil {
		return err
	}
	// debugfs does not say whether it could.
	out, err := command.Run(ctx, strings.NewReader("cat "+model.MachineIDFile+"\nls -p /etc/ssh\n"), "debugfs", "-f", "-", system)
	if err != nil {
		return err
	}
	if identityLeft.Match(out) {
		return api.Errorf(api.Internal, "the identity is still there:\n%s", out)
	}
	return nil
}

// identityLeft is a machine id, or an entry of a directory that is a host key.
var identityLeft = regexp.MustCompile(`(?m)^[0-9a-f]{32}|/ssh_host_[a-z0-9]+_key(\.pub)?/`)

// rootOf finds where the root file system of a raw disk of ours begins and how large it is, in bytes; another's is api.Precondition.
func rootOf(path string) (start, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if table, err := gpt.Read(f, sectorSize, sectorSize); err == nil {
		if root := rootPartition(table); root != nil {
			return int64(root.Start) * sectorSize, int64(root.End-root.Start+1) * sectorSize, nil
		}
	}
	return 0, 0, api.Errorf(api.Precondition, "it has no partition %q: Polder does not know where its system keeps its identity", rootLabel)
}
