// Package movie looks at hinted movies and makes them: Examine writes a report
// on what a server will send for a movie, and Hint a copy of a movie with hint
// tracks. Reading is package hint's; these are tools, no part of the engine.
package movie
