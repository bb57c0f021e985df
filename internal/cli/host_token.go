package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"polder/api"
)

func newHostTokenCommand(a *app) *cobra.Command {
	var address string
	var expires time.Duration
	c := &cobra.Command{
		Use:   "token",
		Short: "Make a token with which one more host joins the cluster",
		Long: `Make a token with which one more host joins the cluster: polder serve --join TOKEN there.

A token is good for one host, until it expires. Whoever has it can join: keep it to yourself. The first token that is made on
a host that was alone makes it listen for other hosts, on its address on the default route unless --address says otherwise.`,
		Args:              args(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if expires < time.Second || expires > 30*24*time.Hour {
				return api.Errorf(api.Invalid, "token that expires after %s: want 1s to 720h", expires)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			token, err := c.JoinToken(cmd.Context(), api.JoinTokenRequest{ExpiresSeconds: int64(expires / time.Second), Address: address})
			if err != nil {
				return err
			}
			if err := a.show(token, func(w io.Writer) { fmt.Fprintln(w, token.Token) }); err != nil {
				return err
			}
			if a.output == asTable {
				fmt.Fprintf(a.stderr, "good for one host, until %s; there: polder serve --join TOKEN\n", token.ExpiresAt.Local().Format("2006-01-02 15:04:05"))
				a.advise(token.Advice)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&expires, "expires", time.Hour, "`TIME` after which it is good for nothing")
	c.Flags().StringVar(&address, "address", "", "`IP[:PORT]` where other hosts are to reach this one, if it was alone until now; with the two ports after it")
	return c
}
