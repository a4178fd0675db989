package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"holdfast/examples/payload/store"
)

// serve runs a server without a pool. It stores payloads as the example does. Like the
// article's servers it has no graceful shutdown: a signal loses what it holds.
func serve(variant, where string) error {
	folder, s3 := where, ""
	if strings.Contains(where, "://") {
		folder, s3 = "", where
	}
	to, err := store.Open(context.Background(), folder, s3)
	if err != nil {
		return err
	}
	put := func(data []byte) {
		if err := to.Put(context.Background(), rand.Text(), data); err != nil {
			log.Print(err)
		}
	}
	accept := func(data []byte) { go put(data) }
	if variant == "consumer" {
		places, err := strconv.Atoi(cmp.Or(os.Getenv("MAX_QUEUE"), "200"))
		if err != nil {
			return err
		}
		queue := make(chan []byte, places)
		go func() {
			for data := range queue {
				put(data)
			}
		}()
		accept = func(data []byte) { queue <- data }
	}
	http.HandleFunc("POST /payload", receive(accept))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	log.Printf("payload addr=%s", l.Addr())
	return http.Serve(l, nil)
}

// receive returns a handler that calls accept with each payload.
func receive(accept func(data []byte)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var collection struct{ Data []json.RawMessage }
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&collection); err != nil {
			http.Error(w, "the body is not a collection of payloads", http.StatusBadRequest)
			return
		}
		for _, data := range collection.Data {
			accept(data)
		}
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, "{\"accepted\":%d}\n", len(collection.Data))
	}
}
