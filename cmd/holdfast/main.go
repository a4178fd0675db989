// Holdfast is the server that main.go in the root runs, as a command that can be
// installed.
package main

import (
	"os"

	"holdfast/internal/command"
)

// version is stamped by make build.
var version = "devel"

func main() { os.Exit(command.Main(version, os.Args[1:])) }
