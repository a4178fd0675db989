//go:build ignore

// Holdfast's server: POST /aaa works at once, POST /bbb queues the same work. With
// plan as the first argument, the planner.
//
// A folder holds one package, and this folder's is the library, so this file is
// run by its name: go run main.go.
package main

import (
	"os"

	"holdfast/internal/command"
)

// version is stamped by make build.
var version = "devel"

func main() { os.Exit(command.Main(version, os.Args[1:])) }
