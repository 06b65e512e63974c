// A heap of Go whose every byte is known. test/e2e/heaps.ts says what pages hold and what is answered.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"log"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
)

const (
	page     = 4096
	pagesMB  = 1 << 20 / page
	spareMB  = 16
	spareKey = 1 << 40
	grownKey = 2 << 40
	objects  = 20_000
)

var common = func() []byte {
	bytes := make([]byte, page-8)
	for i := range bytes {
		at := i + 8
		bytes[i] = byte(at*167 + at>>8*59 + 1)
	}
	return bytes
}()

// Small objects, which lie in spans of their own size.
type object struct {
	number int
	text   string
	next   *object
}

// Pages from a key on, in buffers of 1 to 32 pages.
type run struct {
	key     uint64
	buffers [][]byte
	small   *object
}

func fill(into []byte, key uint64) {
	binary.LittleEndian.PutUint64(into, key)
	copy(into[8:], common)
}

func newRun(megabytes int, key uint64) *run {
	made := &run{key: key}
	for left := megabytes * pagesMB; left > 0; {
		count := min(left, 1+len(made.buffers)%32)
		buffer := make([]byte, count*page)
		for i := range count {
			fill(buffer[i*page:], key)
			key++
		}
		made.buffers = append(made.buffers, buffer)
		left -= count
	}
	for number := range objects {
		made.small = &object{number, strconv.Itoa(number), made.small}
	}
	return made
}

func (r *run) wrong() int {
	wrong, key := 0, r.key
	expected := make([]byte, page)
	for _, buffer := range r.buffers {
		for at := 0; at < len(buffer); at += page {
			fill(expected, key)
			if !bytes.Equal(buffer[at:at+page], expected) {
				wrong++
			}
			key++
		}
	}
	number := objects
	for each := r.small; each != nil; each = each.next {
		number--
		if each.number != number || each.text != strconv.Itoa(number) {
			wrong++
		}
	}
	return wrong + number
}

type heap struct {
	sync.Mutex
	kept, spare *run
	grown       []*run
	nextKey     uint64
	value       []string
}

// New memory has to be zeros: in small and in large pieces. Gives the pieces that are not.
func (h *heap) grow(megabytes int) int {
	dirty := 0
	var fresh [][]byte
	for i := range megabytes * 4 {
		fresh = append(fresh, make([]byte, page*(1+i%100)))
	}
	fresh = append(fresh, make([]byte, megabytes<<20))
	for _, piece := range fresh {
		if bytes.Count(piece, []byte{0}) != len(piece) {
			dirty++
		}
	}
	h.grown = append(h.grown, newRun(megabytes, h.nextKey))
	h.nextKey += uint64(megabytes * pagesMB)
	return dirty
}

func (h *heap) answer(request *http.Request) (map[string]any, bool) {
	h.Lock()
	defer h.Unlock()
	query := request.URL.Query()
	switch request.URL.Path {
	case "/sum":
		crc, pages := uint32(0), 0
		for _, buffer := range h.kept.buffers {
			crc = crc32.Update(crc, crc32.IEEETable, buffer)
			pages += len(buffer) / page
		}
		return map[string]any{"pages": pages, "crc": crc}, true
	case "/check":
		wrong := h.kept.wrong()
		if h.spare != nil {
			wrong += h.spare.wrong()
		}
		for _, each := range h.grown {
			wrong += each.wrong()
		}
		return map[string]any{"wrong": wrong}, true
	case "/gc":
		debug.FreeOSMemory()
	case "/grow":
		megabytes, _ := strconv.Atoi(query.Get("mb"))
		return map[string]any{"dirty": h.grow(megabytes)}, true
	case "/release":
		h.spare, h.grown = nil, nil
		debug.FreeOSMemory()
	case "/write":
		for i := range h.value {
			h.value[i] = query.Get("value")
		}
	case "/read":
		return map[string]any{"value": h.value[len(h.value)-1]}, true
	default:
		return nil, false
	}
	return map[string]any{}, true
}

func main() {
	megabytes := 64
	if wanted, err := strconv.Atoi(os.Getenv("HEAP_MB")); err == nil {
		megabytes = wanted
	}
	h := &heap{kept: newRun(megabytes, 0), spare: newRun(spareMB, spareKey), nextKey: grownKey, value: make([]string, 1000)}
	for i := range h.value {
		h.value[i] = "as dumped"
	}
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "ok")
	})
	http.HandleFunc("/", func(w http.ResponseWriter, request *http.Request) {
		part, known := h.answer(request)
		if !known {
			http.NotFound(w, request)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode([]any{part}); err != nil {
			log.Print(err)
		}
	})
	go func() {
		log.Fatal(http.ListenAndServe(":8080", nil))
	}()
	fmt.Println("ready")
	select {}
}
