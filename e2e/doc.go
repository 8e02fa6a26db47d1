// Package e2e proves from outside what the shim promises: real clients and real
// upstreams, recorded conversations, bad input, and what it costs. It holds
// tests alone. The quick ones run with all others; `make e2e` runs the rest
// (build tag e2e).
package e2e
