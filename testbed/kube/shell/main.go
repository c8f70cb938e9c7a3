// Command shell stands in for `bash -c` in the image of the network-policy-api suite: its pods only start one program with
// arguments, and an image of static programs has no shell.
//
// Where the kernel has no SCTP, a container that would listen on it (agnhost porter) would end, and with it the suite's
// set-up; it pauses instead. The specs that need SCTP are not run there.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) != 3 || os.Args[1] != "-c" {
		fmt.Fprintln(os.Stderr, "usage: bash -c 'PROGRAM ARGUMENT…'")
		os.Exit(2)
	}
	words := strings.Fields(os.Args[2])
	if len(words) > 1 && words[1] == "porter" && wantsSctp() && !hasSctp() {
		words[1] = "pause"
	}
	err := syscall.Exec(words[0], words, os.Environ())
	fmt.Fprintln(os.Stderr, words[0]+":", err)
	os.Exit(127)
}

func wantsSctp() bool {
	for _, variable := range os.Environ() {
		if strings.HasPrefix(variable, "SERVE_SCTP_") {
			return true
		}
	}
	return false
}

func hasSctp() bool {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 132)
	if err != nil {
		return false
	}
	syscall.Close(socket)
	return true
}
