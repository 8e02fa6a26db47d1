// Command shim stands in front of an RTSP server and makes it cheaper and
// steadier without touching it.
package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
)

// commands lists the subcommands, one file each.
var commands = []*cli.Command{
	serveCommand,
	benchCommand,
	hintCommand,
	movieCommand,
	demoCommand,
	compatCommand,
}

func main() {
	app := &cli.App{
		Name:     "shim",
		Usage:    "an RTSP proxy that moves the media data path of an unmodified server to its own I/O engine",
		Commands: commands,
	}
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "shim:", err)
		os.Exit(1)
	}
}
