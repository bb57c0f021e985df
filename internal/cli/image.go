package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

func newImageCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{Use: "image", Short: "Images: what VEs are made from"})
	c.AddCommand(
		newImageBuildCommand(a),
		newImageImportCommand(a),
		newImagePublishCommand(a),
		newImageExportCommand(a),
		newImageListCommand(a),
		newImageInfoCommand(a),
		newImageDeleteCommand(a),
		newImageWarmCommand(a),
	)
	return c
}

func newImageBuildCommand(a *app) *cobra.Command {
	var req api.ImageBuildRequest
	var w waiting
	cmd := &cobra.Command{
		Use:   "build DISTRIBUTION/RELEASE",
		Short: "Build an image from a distribution's packages",
		Example: `  polder image build debian/13
  polder image build debian/13 --alias web --package nginx --cloud-init`,
		Args:              args(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Source = args[0]
			if !strings.Contains(req.Source, "/") {
				return api.Errorf(api.Invalid, "image build %q: want DISTRIBUTION/RELEASE, such as debian/13", req.Source)
			}
			alias := req.Alias
			if alias == "" {
				alias = req.Source
			}
			return a.makeImage(cmd.Context(), w.wanted(), alias, "image build "+alias, func(ctx context.Context, c *client.Client) (api.Operation, error) {
				return c.BuildImage(ctx, req)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.Alias, "alias", "", "`NAME` of the image (default: the source)")
	f.StringVar(&req.Description, "description", "", "`TEXT` for people")
	f.StringSliceVar(&req.Packages, "package", nil, "more `PACKAGES` (may be repeated)")
	f.BoolVar(&req.CloudInit, "cloud-init", false, "include cloud-init")
	f.StringVar(&req.Mirror, "mirror", "", "`URL` to get packages from (default: the distribution's)")
	w.flags(cmd)
	return cmd
}

// makeImage starts an operation that makes an image, waits for it and shows the image.
func (a *app) makeImage(ctx context.Context, wait bool, alias, title string, start func(context.Context, *client.Client) (api.Operation, error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	end := a.run(ctx, c, wait, starter{title, func(ctx context.Context) (api.Operation, error) { return start(ctx, c) }})[0]
	if end.err != nil {
		return end.err
	}
	if !wait {
		return a.showStarted(end.op)
	}
	return a.showMade(ctx, c, alias)
}

func (a *app) showMade(ctx context.Context, c *client.Client, alias string) error {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	image, err := c.Image(ctx, alias)
	if err != nil {
		return err
	}
	return a.show(image, func(w io.Writer) {
		fmt.Fprintf(w, "%s is ready: %s, %s, for %s\n", printable(alias), shortDigest(image.Digest), image.SizeBytes, modelText(image.Models))
	})
}

func newImageListCommand(a *app) *cobra.Command {
	columns := []string{"ALIAS", "DIGEST", "OS", "ARCH", "KERNEL", "MODELS", "SIZE", "AGE"}
	return newThingList(a, "List the images", (*client.Client).Images, columns, func(i api.Image) []string {
		return []string{
			strings.Join(i.Aliases, ","), shortDigest(i.Digest), strings.TrimSpace(i.OS + " " + i.Release), i.Arch, i.Kernel,
			modelText(i.Models), i.SizeBytes.String(), age(time.Since(i.CreatedAt)),
		}
	})
}

func newImageInfoCommand(a *app) *cobra.Command {
	return newThingInfo(a, "info IMAGE", "Show all about an image", a.imageAliases, (*client.Client).Image, writeImage)
}

func writeImage(w io.Writer, i api.Image) {
	f := newFields()
	f.add("Aliases", strings.Join(i.Aliases, ", "))
	f.add("Digest", i.Digest)
	f.add("Description", i.Description)
	f.add("OS", strings.TrimSpace(i.OS+" "+i.Release+" "+i.Arch))
	f.add("Kernel", i.Kernel)
	f.add("Models", modelText(i.Models))
	f.add("Cloud-init", yesNo(i.CloudInit))
	f.add("Size", i.SizeBytes.String())
	if i.DiskBytes > 0 {
		f.add("Disk", i.DiskBytes.String()+" at least, as a vm")
	}
	f.add("Created", moment(i.CreatedAt))
	f.add("Made by", i.Provenance.Method)
	f.add("Made of", i.Provenance.Source)
	var tools []string
	for _, name := range slices.Sorted(maps.Keys(i.Provenance.Tools)) {
		tools = append(tools, name+" "+i.Provenance.Tools[name])
	}
	f.add("Tools", strings.Join(tools, ", "))
	if i.Config != nil {
		f.add("Runs", strings.Join(slices.Concat(i.Config.Entrypoint, i.Config.Cmd), " "))
		f.add("As user", i.Config.User)
		f.add("In directory", i.Config.WorkingDir)
	}
	f.write(w)
}

func newImageDeleteCommand(a *app) *cobra.Command {
	var w waiting
	cmd := &cobra.Command{
		Use:               "delete IMAGE…",
		Short:             "Delete images",
		Args:              args(1, -1),
		ValidArgsFunction: a.completeAll(a.imageAliases),
		RunE: func(cmd *cobra.Command, refs []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			del := verb{word: "image delete", act: func(ctx context.Context, c *client.Client, ref string) (api.Operation, error) {
				return c.DeleteImage(ctx, ref)
			}}
			return a.actOnAll(cmd.Context(), c, del, w.wanted(), refs)
		},
	}
	w.flags(cmd)
	return cmd
}

// shortDigest is enough of a digest to name an image by.
func shortDigest(digest string) string {
	_, hex, ok := strings.Cut(digest, ":")
	if !ok {
		hex = digest
	}
	return hex[:min(12, len(hex))]
}

func modelText(models []api.Model) string {
	var words []string
	for _, m := range models {
		words = append(words, string(m))
	}
	return strings.Join(words, ",")
}
