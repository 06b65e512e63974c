// A Go server that holds 50 MB: the runtime's threads and its heap must come back unchanged.
package main

import (
	"fmt"
	"hash/crc32"
	"log"
	"net"
	"net/http"
)

const heapBytes = 50 << 20

func main() {
	heap := make([]byte, heapBytes)
	for i := range heap {
		heap[i] = byte(i*7 + i>>11)
	}
	atStart := crc32.ChecksumIEEE(heap)

	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "ok")
	})
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"heap_bytes": %d, "at_start": %d, "now": %d}`, len(heap), atStart, crc32.ChecksumIEEE(heap))
	})

	listener, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("ready")
	log.Fatal(http.Serve(listener, nil))
}
