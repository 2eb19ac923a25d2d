// Netprobe speaks over a network for tests.
//
//	netprobe greet ADDRESS           serve TCP: say "hello" first, then send back what comes
//	netprobe echo ADDRESS            serve UDP: send back what comes
//	netprobe dial NETWORK ADDRESS    send "ping", and print what comes first
//	netprobe lookup NAME             print the addresses of a name
//	netprobe addresses               print those of this system
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

func main() {
	if err := probe(os.Args[1:]); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

const patience = 20 * time.Second

func probe(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "greet":
		return greet(args[1])
	case len(args) == 2 && args[0] == "echo":
		return echo(args[1])
	case len(args) == 3 && args[0] == "dial":
		return dial(args[1], args[2])
	case len(args) == 2 && args[0] == "lookup":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		found, err := net.DefaultResolver.LookupHost(ctx, args[1])
		fmt.Println(strings.Join(found, " "))
		return err
	case len(args) == 1 && args[0] == "addresses":
		found, err := net.InterfaceAddrs()
		for _, a := range found {
			fmt.Println(a)
		}
		return err
	}
	return fmt.Errorf("netprobe: %q is not understood", args)
}

func greet(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1024)
			for _, err = c.Write([]byte("hello\n")); err == nil; {
				var n int
				if n, err = c.Read(b); err == nil {
					_, err = c.Write(b[:n])
				}
			}
		}()
	}
}

func echo(address string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	b := make([]byte, 1024)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(b[:n], from); err != nil {
			return err
		}
	}
}

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("ping\n")); err != nil {
		return err
	}
	b := make([]byte, 1024)
	n, err := c.Read(b)
	fmt.Printf("%s", b[:n])
	return err
}
