package cli

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"polder/api"
	"polder/client"
)

// defaultContext is always there: the daemon of this machine.
const defaultContext = "default"

// contexts is the file of contexts: which servers the user knows, and which one is meant.
type contexts struct {
	Version  int                    `json:"version"`
	Current  string                 `json:"current,omitempty"`
	Contexts map[string]contextItem `json:"contexts,omitempty"`
}

type contextItem struct {
	URL string `json:"url"`
}

// serverURL is POLDER_HOST, or the current context's URL.
func (a *app) serverURL() (string, error) {
	if url := a.getenv("POLDER_HOST"); url != "" {
		return url, nil
	}
	all, err := a.readContexts()
	if err != nil {
		return "", err
	}
	return all.Contexts[all.Current].URL, nil
}

// setContext adds or changes a context and makes it the current one.
func (a *app) setContext(name, url string) error {
	if err := api.CheckName("context", name); err != nil {
		return err
	}
	if _, err := client.New(url); err != nil {
		return err
	}
	return a.changeContexts(func(all *contexts) error {
		all.Contexts[name] = contextItem{URL: url}
		all.Current = name
		return nil
	})
}

// removeContext forgets a context; when it was the current one, the default is. One that is not there is no error.
func (a *app) removeContext(name string) error {
	return a.changeContexts(func(all *contexts) error {
		if name != defaultContext {
			delete(all.Contexts, name)
		}
		if all.Current == name {
			all.Current = defaultContext
		}
		return nil
	})
}

func (a *app) contextFile() (string, error) {
	if dir := a.getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "polder", "contexts.json"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", api.Errorf(api.Precondition, "find the file of contexts: %w; set HOME, or POLDER_HOST to the server's address", err)
	}
	return filepath.Join(home, ".config", "polder", "contexts.json"), nil
}

// readContexts gives the contexts with the default one filled in; no file is no error.
func (a *app) readContexts() (*contexts, error) {
	all := &contexts{Version: 1}
	path, err := a.contextFile()
	if err == nil {
		var data []byte
		data, err = os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, api.Errorf(api.Internal, "read contexts: %w", err)
		default:
			if err := json.Unmarshal(data, all); err != nil {
				return nil, api.Errorf(api.Invalid, "read contexts: %s: %w; mend or remove the file", path, err)
			}
		}
	}
	if all.Version != 1 {
		return nil, api.Errorf(api.Unsupported, "read contexts: %s has version %d, this polder knows 1", path, all.Version)
	}
	if all.Contexts == nil {
		all.Contexts = map[string]contextItem{}
	}
	all.Contexts[defaultContext] = contextItem{URL: client.DefaultURL}
	if _, ok := all.Contexts[all.Current]; !ok {
		all.Current = defaultContext
	}
	return all, nil
}

// changeContexts rewrites the file as a whole, so that a reader sees the old or the new one.
func (a *app) changeContexts(change func(*contexts) error) error {
	path, err := a.contextFile()
	if err != nil {
		return err
	}
	all, err := a.readContexts()
	if err != nil {
		return err
	}
	if err := change(all); err != nil {
		return err
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return api.Errorf(api.Internal, "write contexts: %w", err)
	}
	if err := replaceFile(path, append(data, '\n')); err != nil {
		return api.Errorf(api.Internal, "write contexts: %w", err)
	}
	return nil
}

func replaceFile(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".contexts-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func newContextCommand(a *app) *cobra.Command {
	c := asGroup(&cobra.Command{
		Use:   "context",
		Short: "Choose which server the commands talk to",
		Long:  "Choose which server the commands talk to. The variable POLDER_HOST (such as unix:///run/polder/polder.sock) goes before the current context.",
	})
	c.AddCommand(newContextListCommand(a), newContextUseCommand(a), newContextCurrentCommand(a))
	return c
}

func newContextListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the contexts",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.readContexts()
			if err != nil {
				return err
			}
			type entry struct {
				Name    string `json:"name"`
				URL     string `json:"url"`
				Current bool   `json:"current"`
			}
			var list []entry
			t := newTable("NAME", "URL", "CURRENT")
			for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
				e := entry{name, all.Contexts[name].URL, name == all.Current}
				list = append(list, e)
				t.row(e.Name, e.URL, mark(e.Current))
			}
			return a.show(list, t.write)
		},
	}
}

func newContextUseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "use NAME",
		Short: "Make a context the current one",
		Args:  args(1, 1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			all, err := a.readContexts()
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			return slices.Sorted(maps.Keys(all.Contexts)), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeContexts(func(all *contexts) error {
				if _, ok := all.Contexts[args[0]]; !ok {
					return api.Errorf(api.NotFound, "context %q not found; see: polder context list", args[0])
				}
				all.Current = args[0]
				return nil
			})
		},
	}
}

func newContextCurrentCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "current",
		Short: "Show the current context",
		Args:  args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.readContexts()
			if err != nil {
				return err
			}
			v := struct {
				Name string `json:"name"`
				URL  string `json:"url"`
			}{all.Current, all.Contexts[all.Current].URL}
			return a.show(v, func(w io.Writer) { io.WriteString(w, v.Name+"\n") })
		},
	}
}

// mark is the cell of a yes/no column.
func mark(yes bool) string {
	if yes {
		return "*"
	}
	return ""
}
