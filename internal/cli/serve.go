package cli

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/internal/daemon"
)

// The daemon's places on an ordinary host.
const (
	defaultData   = "/var/lib/polder"
	defaultRun    = "/run/polder"
	defaultSocket = defaultRun + "/polder.sock"
)

func newServeCommand(a *app) *cobra.Command {
	o := daemon.Options{Run: defaultRun, Version: a.version}
	var listen string
	var debug bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run this machine as a host: the daemon",
		Long: `Run this machine as a host: the daemon.

VEs are not its children: it can be stopped, upgraded or killed at any time, and VEs run on. At the next start it adopts
them, and resumes or undoes what was under way.

A host is alone until another one joins it: "polder host token" there, "polder serve --join TOKEN" on the other.`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, ok := strings.CutPrefix(listen, "unix://")
			if !ok || !filepath.IsAbs(path) {
				return api.Errorf(api.Invalid, "listen address %q: want unix:///PATH", listen)
			}
			if o.Name == "" {
				name, err := os.Hostname()
				if err != nil {
					return err
				}
				o.Name, _, _ = strings.Cut(strings.ToLower(name), ".")
			}
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			o.Listen = path
			o.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
			slog.SetDefault(o.Log) // models and the tools below them have none of their own
			return daemon.Run(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Data, "data", defaultData, "`DIR` for everything that must outlive a reboot")
	f.StringVar(&listen, "listen", "unix://"+defaultSocket, "`ADDRESS` of the API")
	f.StringSliceVar(&o.Etcd, "etcd", nil, "`URLS` of an external etcd's endpoints; default: an embedded etcd")
	f.StringVar(&o.EtcdTLS.CA, "etcd-ca", "", "PEM `FILE` with who signs the external etcd's certificates; default: whom this machine trusts")
	f.StringVar(&o.EtcdTLS.Cert, "etcd-cert", "", "PEM `FILE` with this host's certificate for the external etcd")
	f.StringVar(&o.EtcdTLS.Key, "etcd-key", "", "PEM `FILE` with the key of that certificate")
	f.StringVar(&o.Join, "join", "", "`TOKEN` of \"polder host token\": become a host of that cluster; without effect once this host is")
	f.StringVar(&o.Address, "address", "", "`IP[:PORT]` where other hosts of the cluster reach this one, with the two ports after it; default: the one on the default route, 7440")
	f.StringVar(&o.Site, "site", "", "`NAME` of the data centre that this host is in")
	f.BoolVar(&o.Witness, "witness", false, "keep a copy of the cluster's store and vote, but run no VEs")
	f.StringVar(&o.Name, "name", "", "`NAME` of this host; default: the machine's")
	f.BoolVar(&debug, "debug", false, "log more")
	return c
}
