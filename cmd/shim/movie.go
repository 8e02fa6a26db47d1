package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"rtspshim/engine/hint"
	"rtspshim/movie"
)

var movieCommand = &cli.Command{
	Name:      "movie",
	Usage:     "report what a hinted movie makes a server send, and what is wrong with it",
	ArgsUsage: "FILE",
	Flags: []cli.Flag{
		&cli.BoolFlag{Name: "json", Usage: "write the report as JSON, a packet a line before it"},
		&cli.BoolFlag{Name: "packets", Usage: "list all packets"},
		&cli.IntFlag{Name: "mtu", Value: 1500, Usage: "measure packets against this MTU, in `BYTES`"},
	},
	Action: examineMovie,
}

func examineMovie(c *cli.Context) error {
	if c.NArg() != 1 {
		return errors.New("movie needs FILE")
	}
	w := bufio.NewWriter(c.App.Writer)
	enc := json.NewEncoder(w)
	cfg := movie.ExamineConfig{MTU: c.Int("mtu")}
	if c.Bool("packets") {
		cfg.Packet = func(track uint32, p *hint.Packet) (err error) {
			if l := movie.Line(track, p); c.Bool("json") {
				err = enc.Encode(l)
			} else {
				_, err = fmt.Fprintln(w, l)
			}
			return err
		}
	}
	r, err := movie.Examine(c.Context, c.Args().First(), cfg)
	if err != nil {
		return errors.Join(err, w.Flush())
	}
	if c.Bool("json") {
		if !c.Bool("packets") {
			enc.SetIndent("", "  ")
		}
		err = enc.Encode(r)
	} else {
		_, err = r.WriteTo(w)
	}
	return errors.Join(err, w.Flush())
}
