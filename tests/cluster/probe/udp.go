package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// What an asker of "who" sends first; all else is sent back as it came.
var who = []byte("who?")

// A udpSocket answers from the address that was asked. On a node with several addresses the kernel
// would choose another one, and the client, or its node's connection tracking, would not know the answer.
type udpSocket struct {
	connection *net.UDPConn
	isV6       bool
}

func listenUDP(network string, port int) (*udpSocket, error) {
	connection, err := net.ListenUDP(network, &net.UDPAddr{Port: port})
	if err != nil {
		return nil, err
	}
	socket := &udpSocket{connection, network == "udp6"}
	raw, err := connection.SyscallConn()
	if err != nil {
		return nil, err
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		if socket.isV6 {
			refused = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVPKTINFO, 1)
		} else {
			refused = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1)
		}
	})
	if err == nil {
		err = refused
	}
	return socket, os.NewSyscallError("setsockopt", err)
}

// answer ends with the socket.
func (s *udpSocket) answer(name string) error {
	packet, control := make([]byte, 65536), make([]byte, 256)
	for {
		n, oobn, _, from, err := s.connection.ReadMsgUDP(packet, control)
		if err != nil {
			return err
		}
		answer := packet[:n]
		if bytes.HasPrefix(answer, who) {
			answer = []byte(fmt.Sprintf("%s %s", name, from.IP))
		}
		// One that cannot be answered, as without a route back, is as lost as any datagram.
		_, _, _ = s.connection.WriteMsgUDP(answer, s.asked(control[:oobn]), from)
	}
}

// asked turns the control message of a datagram into one that answers from its destination.
func (s *udpSocket) asked(control []byte) []byte {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, message := range messages {
		switch {
		case s.isV6 && message.Header.Type == syscall.IPV6_PKTINFO && len(message.Data) >= 20:
			// in6_pktinfo: the address, then the interface, which is left to the routes.
			info := append([]byte{}, message.Data[:20]...)
			copy(info[16:], []byte{0, 0, 0, 0})
			return controlMessage(syscall.IPPROTO_IPV6, syscall.IPV6_PKTINFO, info)
		case !s.isV6 && message.Header.Type == syscall.IP_PKTINFO && len(message.Data) >= 12:
			// in_pktinfo: the interface, the source to answer from, the destination.
			info := make([]byte, 12)
			copy(info[4:8], message.Data[8:12])
			return controlMessage(syscall.IPPROTO_IP, syscall.IP_PKTINFO, info)
		}
	}
	return nil
}

func controlMessage(level, kind int32, data []byte) []byte {
	message := make([]byte, syscall.CmsgSpace(len(data)))
	header := (*syscall.Cmsghdr)(unsafe.Pointer(&message[0]))
	header.Level, header.Type = level, kind
	header.SetLen(syscall.CmsgLen(len(data)))
	copy(message[syscall.CmsgLen(0):], data)
	return message
}
