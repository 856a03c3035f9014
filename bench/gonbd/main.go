// Command gonbd serves a file with the server and the file backend of go-nbd, as its
// examples do: gonbd SOCKET FILE. It knows neither FLUSH nor FUA and syncs only when a client says goodbye.
package main

import (
	"fmt"
	"log"
	"net"
	"os"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gonbd SOCKET FILE")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "gonbd:", err)
		os.Exit(1)
	}
}

func serve(socket, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	b := backend.NewFileBackend(f)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			exports := []*server.Export{{Backend: b}}
			if err := server.Handle(c, exports, &server.Options{SupportsMultiConn: true}); err != nil {
				log.Println(err)
			}
		}()
	}
}
