package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
)

func newImageWarmCommand(a *app) *cobra.Command {
	var (
		req          api.WarmRequest
		memory, disk sizeFlag
		show         bool
		w            waiting
	)
	cmd := &cobra.Command{
		Use:   "warm IMAGE | --list",
		Short: "Keep an image's VM booted, so that launches are forks of it",
		Long: `Keep an image's VM booted, so that launches are forks of it: a VM is launched, boots, and is kept as it is then, on one host. From
then on launching a VM there with the same image, CPUs, memory and disk, under BIOS and without cloud-init data, is a fork: it has booted
already. Each has an identity of its own.

A template that can't be used (after an upgrade of QEMU, say) is passed over, and the VM boots; make it anew then.`,
		Example: `  polder image warm debian/13 --memory 1GiB
  polder launch debian/13 v1 --model vm --memory 1GiB
  polder image warm debian/13 --memory 1GiB --off`,
		Args:              args(0, 1),
		ValidArgsFunction: a.completeFirst(a.imageAliases),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case show && len(args) == 0:
				return a.listTemplates(cmd.Context())
			case show || len(args) == 0:
				return api.Errorf(api.Invalid, "image warm: give an image, or --list")
			case cmd.Flags().Changed("cpus") && req.CPUs < 1:
				return api.Errorf(api.Invalid, "image warm: --cpus %d: want at least 1", req.CPUs)
			}
			req.MemoryBytes, req.DiskBytes = api.Bytes(memory), api.Bytes(disk)
			return a.warm(cmd.Context(), args[0], req, w.wanted())
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Host, "host", "", "the `HOST` to keep it on (default: the one that is asked)")
	f.IntVar(&req.CPUs, "cpus", 0, "number `N` of CPUs (default 1)")
	f.Var(&memory, "memory", "memory, such as 512MiB or 2GiB (default 512MiB)")
	f.Var(&disk, "disk", "size of the disk (default 10GiB, or the image's size when larger)")
	f.BoolVar(&req.Off, "off", false, "remove it")
	f.BoolVar(&show, "list", false, "list all that there are")
	w.flags(cmd)
	must(cmd.RegisterFlagCompletionFunc("host", a.complete(a.hostNames)))
	return cmd
}

func (a *app) warm(ctx context.Context, ref string, req api.WarmRequest, wait bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	end := a.run(ctx, c, wait, starter{"image warm " + ref, func(ctx context.Context) (api.Operation, error) { return c.WarmImage(ctx, ref, req) }})[0]
	switch {
	case end.err != nil:
		return end.err
	case !wait:
		return a.showStarted(end.op)
	case req.Off:
		return nil
	}
	var t api.Template
	if err := json.Unmarshal(end.op.Result, &t); err != nil {
		return api.Errorf(api.Internal, "image warm %s: the result of operation %s: %w", ref, end.op.ID, err)
	}
	return a.show(t, func(out io.Writer) {
		fmt.Fprintf(out, "%s is warm on %s: launches with %d cpus, %s of memory and a disk of %s are forks\n", printable(ref), t.Host, t.CPUs, t.MemoryBytes, t.DiskBytes)
	})
}

func (a *app) listTemplates(ctx context.Context) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	list, err := c.Templates(ctx)
	if err != nil {
		return err
	}
	t := newTable("IMAGE", "HOST", "CPUS", "MEMORY", "DISK", "USED", "AGE")
	for _, one := range list {
		t.row(shortDigest(one.Image), one.Host, strconv.Itoa(one.CPUs), one.MemoryBytes.String(), one.DiskBytes.String(), one.UsedBytes.String(), age(time.Since(one.CreatedAt)))
	}
	return a.show(list, t.write)
}
