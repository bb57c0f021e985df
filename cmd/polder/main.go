// Command polder is the whole of Polder: the daemon (polder serve), the lab and the command line.
package main

import (
	"os"

	"polder/internal/cli"
)

// version is set by the linker: -ldflags "-X main.version=v0.1.0".
var version string

func main() { os.Exit(cli.Main(version)) }
