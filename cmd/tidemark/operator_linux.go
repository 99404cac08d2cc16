package main

import (
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a unix socket, as the system knows: name (number).
func peer(conn net.Conn) string {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ""
	}
	var of *unix.Ucred
	if raw.Control(func(fd uintptr) { of, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ""
	}
	id := strconv.FormatUint(uint64(of.Uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username + " (" + id + ")"
	}
	return id
}
