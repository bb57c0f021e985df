package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

// maxUserData is the most cloud-init user-data that is read from a file.
const maxUserData = 1 << 20

func newLaunchCommand(a *app) *cobra.Command {
	var (
		req               api.LaunchRequest
		w                 waiting
		cloudInit, model  string
		restart, firmware string
		memory, disk      sizeFlag
		ttl               lifeFlag
		labels            []string
	)
	cmd := &cobra.Command{
		Use:   "launch IMAGE NAME",
		Short: "Make a VE from an image and start it",
		Example: `  polder launch debian/13 c1
  polder launch debian/13 v1 --model vm --cpus 2 --memory 2GiB --label role=db`,
		Args:              args(2, 2),
		ValidArgsFunction: a.completeFirst(a.imageAliases),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Image, req.Name = args[0], args[1]
			req.MemoryBytes, req.DiskBytes, req.TTLSeconds = api.Bytes(memory), api.Bytes(disk), int64(ttl)
			req.Restart, req.Firmware = api.RestartPolicy(restart), api.Firmware(firmware)
			if cmd.Flags().Changed("cpus") && req.CPUs < 1 {
				return api.Errorf(api.Invalid, "launch %s: --cpus %d: want at least 1", req.Name, req.CPUs)
			}
			if err := completeLaunch(&req, model, labels, cloudInit); err != nil {
				return err
			}
			return a.launch(cmd.Context(), req, w.wanted())
		},
	}
	f := cmd.Flags()
	f.StringVar(&model, "model", string(api.Container), "`MODEL` to run it under: container, vm or partition")
	f.IntVar(&req.CPUs, "cpus", 0, "number `N` of CPUs (default 1)")
	f.Var(&memory, "memory", "memory, such as 512MiB or 2GiB (default 512MiB)")
	f.Var(&disk, "disk", "size of the disk (default 10GiB, or the image's size when larger)")
	f.StringVar(&req.Host, "host", "", "the `HOST` to run it on")
	f.StringVar(&req.Pool, "pool", "", "the `POOL` for its disk")
	f.StringVar(&cloudInit, "cloud-init", "", "`FILE` with cloud-init user-data")
	f.BoolVar(&req.Ephemeral, "ephemeral", false, "delete it when it stops")
	f.Var(&ttl, "ttl", "delete it by itself after this time, such as 2h")
	f.StringArrayVar(&labels, "label", nil, "label `K=V` (may be repeated)")
	f.StringVar(&restart, "restart", "", "`POLICY` when it ends by itself: never, on-failure or always (default on-failure)")
	f.StringVar(&firmware, "firmware", "", "`FIRMWARE` of a vm: bios or uefi (default bios)")
	f.BoolVar(&req.NoStart, "no-start", false, "make it, leave it stopped")
	w.flags(cmd)
	completeWords(cmd, "model", "container", "vm", "partition")
	completeWords(cmd, "restart", "never", "on-failure", "always")
	completeWords(cmd, "firmware", "bios", "uefi")
	must(cmd.RegisterFlagCompletionFunc("host", a.complete(a.hostNames)))
	must(cmd.RegisterFlagCompletionFunc("pool", a.complete(a.poolNames)))
	return cmd
}

// completeLaunch checks what can be checked before anything is sent.
func completeLaunch(req *api.LaunchRequest, model string, labels []string, cloudInit string) error {
	err := api.CheckName("ve", req.Name)
	if err == nil {
		req.Model, err = api.ParseModel(model)
	}
	if err == nil {
		err = oneOf("--restart", string(req.Restart), "never", "on-failure", "always")
	}
	if err == nil {
		err = oneOf("--firmware", string(req.Firmware), "bios", "uefi")
	}
	if err == nil {
		req.Labels, err = parseLabels(labels)
	}
	if err == nil && cloudInit != "" {
		req.UserData, err = readUserData(cloudInit)
	}
	return err
}

func (a *app) launch(ctx context.Context, req api.LaunchRequest, wait bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	start := starter{"launch " + req.Name, func(ctx context.Context) (api.Operation, error) { return c.Launch(ctx, req) }}
	end := a.run(ctx, c, wait, start)[0]
	if wait && api.KindOf(end.err) == api.NotFound {
		built, err := a.buildMissing(ctx, c, req.Image)
		if err != nil {
			return err
		}
		if built {
			end = a.run(ctx, c, wait, start)[0]
		}
	}
	if end.err != nil {
		return end.err
	}
	if !wait {
		return a.showStarted(end.op)
	}
	ctx, cancel := afterwards(ctx)
	defer cancel()
	ve, err := c.VE(ctx, req.Name)
	if api.KindOf(err) == api.NotFound {
		return nil // an ephemeral one can be gone already
	}
	if err != nil {
		return err
	}
	var made api.VE
	if json.Unmarshal(end.op.Result, &made) == nil {
		ve.FromTemplate = made.FromTemplate
	}
	return a.show(ve, func(out io.Writer) {
		fmt.Fprintf(out, "%s is %s: %s", ve.Name, ve.State, ve.Model)
		if ip := plainAddress(ve); ip != "" {
			fmt.Fprintf(out, ", %s", ip)
		}
		if ve.FromTemplate {
			fmt.Fprint(out, ", a fork of its image's template")
		}
		fmt.Fprintln(out)
	})
}

// buildMissing builds an image that is not there but can be made from a distribution's packages; whether it can, the server
// decides. built is false when there was nothing to build.
func (a *app) buildMissing(ctx context.Context, c *client.Client, ref string) (built bool, err error) {
	if _, err := c.Image(ctx, ref); api.KindOf(err) != api.NotFound {
		return false, nil
	}
	build := starter{"image build " + ref, func(ctx context.Context) (api.Operation, error) {
		op, err := c.BuildImage(ctx, api.ImageBuildRequest{Source: ref})
		if err == nil {
			fmt.Fprintf(a.stderr, "there is no image %s yet: building it\n", ref)
		}
		return op, err
	}}
	switch end := a.run(ctx, c, true, build)[0]; api.KindOf(end.err) {
	case "":
		return true, nil
	case api.Invalid: // no distribution that the server knows
		return false, nil
	default:
		return false, end.err
	}
}

// showStarted prints an operation that nobody waits for.
func (a *app) showStarted(op api.Operation) error {
	return a.show(op, func(out io.Writer) { fmt.Fprintln(out, op.ID) })
}

func parseLabels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, api.Errorf(api.Invalid, "label %q: want KEY=VALUE", pair)
		}
		labels[key] = value
	}
	return labels, nil
}

func readUserData(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", api.Errorf(api.Invalid, "read cloud-init file: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxUserData+1))
	if err != nil {
		return "", api.Errorf(api.Invalid, "read cloud-init file: %w", err)
	}
	if len(data) > maxUserData {
		return "", api.Errorf(api.Invalid, "read cloud-init file %s: larger than %s", path, api.Bytes(maxUserData))
	}
	if len(strings.TrimSpace(string(data))) == 0 {
		return "", api.Errorf(api.Invalid, "read cloud-init file %s: it is empty", path)
	}
	return string(data), nil
}

// oneOf checks a flag whose empty value means the server's default.
func oneOf(flag, value string, allowed ...string) error {
	if value == "" {
		return nil
	}
	for _, word := range allowed {
		if value == word {
			return nil
		}
	}
	return api.Errorf(api.Invalid, "%s %q: want %s", flag, value, strings.Join(allowed, " or "))
}

// sizeFlag is a flag with an amount of bytes.
type sizeFlag api.Bytes

// String prints the flag's value; the zero value is the server's default.
func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return api.Bytes(*s).String()
}

// Set reads the flag.
func (s *sizeFlag) Set(text string) error {
	n, err := api.ParseBytes(text)
	if err == nil && n == 0 {
		err = errors.New("want more than nothing")
	}
	*s = sizeFlag(n)
	return err
}

// Type names the flag's value in the help text.
func (s *sizeFlag) Type() string { return "SIZE" }

// lifeFlag is a flag with a time to live, in seconds.
type lifeFlag int64

// String prints the flag's value; the zero value is for ever.
func (l *lifeFlag) String() string {
	if *l == 0 {
		return ""
	}
	return (time.Duration(*l) * time.Second).String()
}

// Set reads the flag.
func (l *lifeFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err == nil && (d < time.Second || d%time.Second != 0) {
		err = errors.New("want whole seconds, such as 90s, 2h")
	}
	*l = lifeFlag(d / time.Second)
	return err
}

// Type names the flag's value in the help text.
func (l *lifeFlag) Type() string { return "TIME" }
