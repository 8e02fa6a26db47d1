// Package hinted holds the hinted movies of this folder, for `shim demo` to
// take along. README.md says what they are.
package hinted

import "embed"

// Movies are the movies, by their file names.
//
//go:embed *.mp4 *.mov
var Movies embed.FS
