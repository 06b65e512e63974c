// A server in C that tells, byte by byte, what became of its memory. test/e2e/heaps.ts says what such services answer.
//
// GET /operations does to memory that is older than the dump all that Linux lets one do to it, once: see operations.c
#define _GNU_SOURCE
#include "heap.h"
#include <malloc.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MB = 1 << 20, MAX_GROWN = 64, VALUE_PAGES = 32 };

// Pages from `key` on, in a mapping of their own.
struct run {
  unsigned char *base;
  long pages;
  uint64_t key;
};

static const uint64_t SPARE_KEY = 1ull << 40;
static struct run heap, spare, grown[MAX_GROWN];
static int runs_grown;
static uint64_t next_key = 2ull << 40;
static char *value;
static int operated;

static struct run mapped(long pages) {
  unsigned char *base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    perror("mmap");
    exit(1);
  }
  return (struct run){base, pages, 0};
}

static void fill_run(struct run *run, uint64_t key) {
  run->key = key;
  for (long i = 0; i < run->pages; i++) fill(run->base + i * PAGE, key + i);
}

static long wrong_in(const struct run *run) {
  long wrong = 0;
  for (long i = 0; i < run->pages; i++) wrong += !holds(run->base + i * PAGE, run->key + i);
  return wrong;
}

static void release(struct run *run) {
  if (run->base != NULL) munmap(run->base, run->pages * PAGE);
  *run = (struct run){NULL, 0, 0};
}

// New memory is read before it is written: it has to be zeros.
static long grow(long megabytes) {
  if (runs_grown == MAX_GROWN) return -1;
  struct run *run = &grown[runs_grown++];
  *run = mapped(megabytes * (MB / PAGE));
  long dirty = 0;
  for (long i = 0; i < run->pages; i++) dirty += !is_zero(run->base + i * PAGE);
  fill_run(run, next_key);
  next_key += run->pages;
  return dirty;
}

static void release_all(void) {
  release(&spare);
  while (runs_grown > 0) release(&grown[--runs_grown]);
}

static long wrong_anywhere(void) {
  long wrong = wrong_in(&heap) + wrong_in(&spare) + (operated ? 0 : wrong_in_areas());
  for (int i = 0; i < runs_grown; i++) wrong += wrong_in(&grown[i]);
  return wrong;
}

// Each answer ends with its connection, so that its length need not be known.
static void answer(int to, const char *status, const char *type) {
  dprintf(to, "HTTP/1.1 %s\r\nContent-Type: %s\r\nConnection: close\r\n\r\n", status, type);
}

static void result(int to, const char *format, ...) {
  answer(to, "200 OK", "application/json");
  va_list values;
  va_start(values, format);
  vdprintf(to, format, values);
  va_end(values);
}

static void respond(int to, char *target) {
  char *query = strchr(target, '?');
  if (query != NULL) *query++ = 0;
  const char *argument = query != NULL && strchr(query, '=') ? strchr(query, '=') + 1 : "";
  if (strcmp(target, "/healthz") == 0) {
    answer(to, "200 OK", "text/plain");
    dprintf(to, "ok");
  } else if (strcmp(target, "/sum") == 0) {
    result(to, "[{\"pages\": %ld, \"crc\": %u}]", heap.pages, crc32(0, heap.base, heap.pages * PAGE));
  } else if (strcmp(target, "/check") == 0) {
    result(to, "[{\"wrong\": %ld}]", wrong_anywhere());
  } else if (strcmp(target, "/gc") == 0) {
    malloc_trim(0);
    result(to, "[{}]");
  } else if (strcmp(target, "/grow") == 0) {
    result(to, "[{\"dirty\": %ld}]", grow(atol(argument)));
  } else if (strcmp(target, "/release") == 0) {
    release_all();
    result(to, "[{}]");
  } else if (strcmp(target, "/write") == 0) {
    for (int i = 0; i < VALUE_PAGES; i++) snprintf(value + i * PAGE, PAGE, "%s", argument);
    result(to, "[{}]");
  } else if (strcmp(target, "/read") == 0) {
    result(to, "[{\"value\": \"%s\"}]", value + (VALUE_PAGES - 1) * PAGE);
  } else if (strcmp(target, "/operations") == 0 && !operated) {
    operated = 1;
    answer(to, "200 OK", "application/json");
    write_operations(to);
  } else {
    answer(to, "404 Not Found", "text/plain");
  }
}

static void serve(int connection) {
  char head[8192];
  long length = 0, got;
  while (length < (long)sizeof head - 1 && (got = read(connection, head + length, sizeof head - 1 - length)) > 0) {
    length += got;
    head[length] = 0;
    if (strstr(head, "\r\n\r\n") != NULL) break;
  }
  char *target = length > 0 ? strchr(head, ' ') : NULL;
  char *end = target != NULL ? strchr(target + 1, ' ') : NULL;
  if (end != NULL) {
    *end = 0;
    respond(connection, target + 1);
  }
  close(connection);
}

int main(void) {
  const char *megabytes = getenv("HEAP_MB");
  heap = mapped((megabytes != NULL ? atol(megabytes) : 64) * (MB / PAGE));
  fill_run(&heap, 0);
  spare = mapped(16 * (MB / PAGE));
  fill_run(&spare, SPARE_KEY);
  struct run values = mapped(VALUE_PAGES);
  fill_run(&values, SPARE_KEY);
  value = (char *)values.base;
  for (int i = 0; i < VALUE_PAGES; i++) strcpy(value + i * PAGE, "as dumped");
  make_areas();

  int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
  if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0) {
    perror("port 8080");
    return 1;
  }
  // Not by way of stdio, whose buffer would lie behind the area at the break.
  dprintf(STDOUT_FILENO, "ready\n");
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection >= 0) serve(connection);
  }
}
