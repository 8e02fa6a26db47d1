package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"

	"rtspshim/movie"
)

var hintCommand = &cli.Command{
	Name:      "hint",
	Usage:     "write a hinted copy of a movie, ready to be streamed",
	ArgsUsage: "IN OUT",
	Description: "Copies an MP4 or QuickTime movie and adds RTP hint tracks for its H.264, HEVC, MPEG-4 and AAC tracks,\n" +
		"interleaved with the media and with packets due evenly.",
	Flags: []cli.Flag{
		&cli.IntFlag{Name: "mtu", Value: 1500, Usage: "largest IP datagram a packet may need, in `BYTES`"},
		&cli.BoolFlag{Name: "again", Usage: "drop the hint tracks that are there"},
		&cli.BoolFlag{Name: "quiet", Usage: "no progress bar"},
	},
	Action: hintMovie,
}

func hintMovie(c *cli.Context) error {
	if c.NArg() != 2 {
		return errors.New("hint needs IN and OUT")
	}
	cfg := movie.HintConfig{MTU: c.Int("mtu"), Again: c.Bool("again")}
	if !c.Bool("quiet") {
		var bar *progressbar.ProgressBar
		cfg.Progress = func(done, total int64) {
			if bar == nil {
				bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionShowBytes(true),
					progressbar.OptionSetDescription("hinting"), progressbar.OptionClearOnFinish())
			}
			_ = bar.Set64(done)
		}
	}
	done, err := movie.Hint(c.Args().Get(0), c.Args().Get(1), cfg)
	if err != nil {
		return err
	}
	var said strings.Builder
	for _, t := range done.Tracks {
		fmt.Fprintf(&said, "track %d hints track %d: %d packets, %d bytes\n", t.ID, t.Media, t.Packets, t.Bytes)
	}
	for _, s := range done.Skipped {
		fmt.Fprintln(&said, "not hinted:", s)
	}
	_, err = io.WriteString(c.App.Writer, said.String())
	return err
}
