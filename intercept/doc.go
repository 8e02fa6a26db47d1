// Package intercept knows the sessions behind the messages that the proxy
// carries, and moves their media to the engine.
//
// Each session of a client is a genuine session at the upstream, its shadow.
// At SETUP over UDP the shim names ports of its own towards the upstream and
// the engine's ports towards the client, and a Relay carries the packets
// between them. Interleaved media stay on their connection. Multicast, a third
// party's destination and everything that is not understood pass untouched.
package intercept
