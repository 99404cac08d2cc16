//go:build !linux

package main

import "net"

// peer is who is at the other end of a unix socket: this system does not tell.
func peer(net.Conn) string { return "" }
