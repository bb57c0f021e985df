// Package api is the vocabulary of Polder: the wire types of the HTTP API (v1) and the kinds of error.
//
// It imports the standard library only, so that other people's programs can use it. JSON names are stable, and carry
// their unit (memory_bytes, outage_ms). Times are RFC 3339 in UTC. It holds no behaviour beyond parsing and printing.
package api

// Version of the HTTP API: the prefix of every route.
const Version = "v1"
