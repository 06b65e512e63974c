// What Linux promises of memory without a file, operation by operation. An operation may be refused, and then nothing may
// have changed; one that is done must leave exactly what it promises, in its areas and in their neighbours.
#define _GNU_SOURCE
#include "heap.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

// A block is three adjacent areas: a small one that is left out of core files, a large one, and a small one that can only
// be read. What differs keeps them apart; nothing is mapped in front of a block or behind it.
enum { SMALL = 24, LARGE = 96, BLOCK = SMALL + LARGE + SMALL, GAP = 256, BLOCKS = 64 };
enum { LOWER = 0, MIDDLE = SMALL, UPPER = SMALL + LARGE };

struct block {
  unsigned char *base;
  uint64_t key;
};

static struct block blocks[BLOCKS];

static const char *const CHANGED_FILE = "/changed";
enum { FILE_PAGES = 160, CHANGED_FROM = 32, CHANGED_TO = 128, FILE_KEY = 1 << 28 };
static unsigned char *changed;

enum { BRK_PAGES = 512 };
static unsigned char *brk_area;
static const uint64_t BRK_KEY = 2 << 28, NEW = 3ull << 32;

static unsigned char *shared;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static unsigned char *map(void *at, long pages, int flags) {
  unsigned char *area = mmap(at, pages * PAGE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) fail("mmap");
  return area;
}

static void fill_all(unsigned char *at, long pages, uint64_t key) {
  for (long i = 0; i < pages; i++) fill(at + i * PAGE, key + i);
}

static long kept_at(const unsigned char *at, long pages, uint64_t key) {
  long wrong = 0;
  for (long i = 0; i < pages; i++) wrong += !holds(at + i * PAGE, key + i);
  return wrong;
}

static long zeros_at(const unsigned char *at, long pages) {
  long wrong = 0;
  for (long i = 0; i < pages; i++) wrong += !is_zero(at + i * PAGE);
  return wrong;
}

static unsigned char *at(const struct block *b, long page) {
  return b->base + page * PAGE;
}

// Pages of a block, from one up to but not including another, that are not as they were made.
static long kept(const struct block *b, long from, long to) {
  return kept_at(at(b, from), to - from, b->key + from);
}

static long zeros(const struct block *b, long from, long to) {
  return zeros_at(at(b, from), to - from);
}

void make_areas(void) {
  for (int i = 0; i < BLOCKS; i++) {
    unsigned char *room = mmap(NULL, (BLOCK + 2 * GAP) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) fail("mmap");
    struct block *b = &blocks[i];
    *b = (struct block){map(room + GAP * PAGE, BLOCK, MAP_PRIVATE | MAP_FIXED), (uint64_t)(i + 1) << 16};
    if (munmap(room, GAP * PAGE) != 0 || munmap(at(b, BLOCK), GAP * PAGE) != 0) fail("munmap");
    fill_all(b->base, BLOCK, b->key);
    if (madvise(at(b, LOWER), SMALL * PAGE, MADV_DONTDUMP) != 0) fail("madvise");
    if (mprotect(at(b, UPPER), SMALL * PAGE, PROT_READ) != 0) fail("mprotect");
  }
  int file = open(CHANGED_FILE, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (file < 0) fail(CHANGED_FILE);
  unsigned char page[PAGE];
  for (int i = 0; i < FILE_PAGES; i++) {
    fill(page, FILE_KEY + i);
    if (write(file, page, PAGE) != PAGE) fail(CHANGED_FILE);
  }
  changed = mmap(NULL, FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  if (changed == MAP_FAILED) fail("mmap");
  close(file);
  fill_all(changed + CHANGED_FROM * PAGE, CHANGED_TO - CHANGED_FROM, NEW + FILE_KEY + CHANGED_FROM);
  // What malloc takes of it lies below, and is all that it will need.
  free(malloc(1));
  brk_area = sbrk(0);
  brk_area += -(uintptr_t)brk_area % PAGE;
  if (brk(brk_area + BRK_PAGES * PAGE) != 0) fail("brk");
  fill_all(brk_area, BRK_PAGES, BRK_KEY);
  shared = map(NULL, SMALL, MAP_SHARED);
  fill_all(shared, SMALL, NEW);
}

static long wrong_in_file(void) {
  return kept_at(changed, CHANGED_FROM, FILE_KEY) +
         kept_at(changed + CHANGED_FROM * PAGE, CHANGED_TO - CHANGED_FROM, NEW + FILE_KEY + CHANGED_FROM) +
         kept_at(changed + CHANGED_TO * PAGE, FILE_PAGES - CHANGED_TO, FILE_KEY + CHANGED_TO);
}

long wrong_in_areas(void) {
  long wrong = wrong_in_file() + kept_at(brk_area, BRK_PAGES, BRK_KEY) + kept_at(shared, SMALL, NEW);
  for (int i = 0; i < BLOCKS; i++) wrong += kept(&blocks[i], 0, BLOCK);
  return wrong;
}

// What came of an operation: the errno with which it was refused, or 0, and how many pages are wrong.
struct outcome {
  int error;
  long wrong;
};

static int error_of(long result) {
  return result == -1 ? errno : 0;
}

// Pages can be written again whatever was done to them, and hold what was written.
static long rewritten(struct block *b, long from, long to) {
  fill_all(at(b, from), to - from, NEW + from);
  return kept_at(at(b, from), to - from, NEW + from);
}

// Drops content: zeros are read afterwards.
static struct outcome discard(struct block *b, int advice, long from, long to) {
  int error = error_of(madvise(at(b, from), (to - from) * PAGE, advice));
  long wrong = kept(b, 0, from) + kept(b, to, BLOCK);
  wrong += error ? kept(b, from, to) : zeros(b, from, to);
  if (mprotect(at(b, UPPER), SMALL * PAGE, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
  return (struct outcome){error, wrong + rewritten(b, from, to)};
}

static struct outcome discard_area(struct block *b, int advice) {
  return discard(b, advice, MIDDLE, UPPER);
}

static struct outcome discard_part(struct block *b, int advice) {
  return discard(b, advice, MIDDLE + 7, MIDDLE + 60);
}

static struct outcome discard_across(struct block *b, int advice) {
  return discard(b, advice, LOWER + 5, UPPER + 9);
}

// What was written since the dump is dropped as well.
static struct outcome discard_written(struct block *b, int advice) {
  fill_all(at(b, MIDDLE), LARGE, NEW);
  int error = error_of(madvise(at(b, MIDDLE), LARGE * PAGE, advice));
  long wrong = kept(b, LOWER, MIDDLE) + kept(b, UPPER, BLOCK);
  wrong += error ? kept_at(at(b, MIDDLE), LARGE, NEW) : zeros(b, MIDDLE, UPPER);
  return (struct outcome){error, wrong};
}

// Zeros or the old content are read afterwards, page by page, until it is written.
static struct outcome free_lazily(struct block *b, int advice) {
  int error = error_of(madvise(at(b, MIDDLE), LARGE * PAGE, advice));
  long wrong = kept(b, LOWER, MIDDLE) + kept(b, UPPER, BLOCK);
  for (long i = MIDDLE; i < UPPER; i++) wrong += kept(b, i, i + 1) && (error || zeros(b, i, i + 1));
  return (struct outcome){error, wrong + rewritten(b, MIDDLE, UPPER)};
}

// Changes nothing that can be read.
static struct outcome advise(struct block *b, int advice) {
  int error = error_of(madvise(at(b, MIDDLE), LARGE * PAGE, advice));
  return (struct outcome){error, kept(b, 0, BLOCK) + rewritten(b, MIDDLE, UPPER)};
}

static struct outcome install_guards(struct block *b, int advice) {
  int error = error_of(madvise(at(b, MIDDLE), LARGE * PAGE, advice));
  if (error == 0 && madvise(at(b, MIDDLE), LARGE * PAGE, MADV_GUARD_REMOVE) != 0) fail("MADV_GUARD_REMOVE");
  long wrong = kept(b, LOWER, MIDDLE) + kept(b, UPPER, BLOCK);
  return (struct outcome){error, wrong + (error ? kept(b, MIDDLE, UPPER) : zeros(b, MIDDLE, UPPER))};
}

// The result of `work` in a child: how many pages it found wrong, 255 at most, or that it was killed.
static long in_child(long (*work)(struct block *), struct block *b) {
  pid_t child = fork();
  if (child == -1) fail("fork");
  if (child == 0) {
    long wrong = work(b);
    _exit(wrong > 255 ? 255 : (int)wrong);
  }
  int status;
  if (waitpid(child, &status, 0) == -1) fail("waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000;
}

static long child_finds_zeros(struct block *b) {
  return kept(b, LOWER, MIDDLE) + zeros(b, MIDDLE, UPPER) + kept(b, UPPER, BLOCK);
}

static long child_finds_all(struct block *b) {
  return kept(b, 0, BLOCK);
}

static struct outcome wipe_on_fork(struct block *b, int advice) {
  int error = error_of(madvise(at(b, MIDDLE), LARGE * PAGE, advice));
  long wrong = in_child(error ? child_finds_all : child_finds_zeros, b);
  return (struct outcome){error, wrong + kept(b, 0, BLOCK)};
}

static long child_discards(struct block *b) {
  struct outcome found = discard(b, MADV_DONTNEED, MIDDLE, UPPER);
  return found.wrong;
}

static long child_writes(struct block *b) {
  return kept(b, 0, BLOCK) + rewritten(b, MIDDLE + 3, UPPER);
}

static long grandchild(struct block *b) {
  long wrong = rewritten(b, MIDDLE, MIDDLE + 20) + in_child(child_writes, &blocks[b - blocks + 1]);
  return wrong + kept_at(at(b, MIDDLE), 20, NEW + MIDDLE) + kept(b, MIDDLE + 20, BLOCK);
}

// A child's `work` is not seen by its parent.
static struct outcome fork_to(struct block *b, long (*work)(struct block *)) {
  long wrong = in_child(work, b);
  return (struct outcome){0, wrong + kept(b, 0, BLOCK)};
}

static struct outcome fork_writes(struct block *b, int unused) {
  (void)unused;
  return fork_to(b, child_writes);
}

static struct outcome fork_discards(struct block *b, int unused) {
  (void)unused;
  return fork_to(b, child_discards);
}

// The next block is the child's child's.
static struct outcome fork_twice(struct block *b, int unused) {
  (void)unused;
  struct outcome found = fork_to(b, grandchild);
  found.wrong += kept(b + 1, 0, BLOCK);
  return found;
}

// What the parent writes after the fork is not seen by its child.
static struct outcome parent_writes(struct block *b, int unused) {
  (void)unused;
  int written[2];
  if (pipe(written) != 0) fail("pipe");
  pid_t child = fork();
  if (child == -1) fail("fork");
  if (child == 0) {
    char byte;
    close(written[1]);
    if (read(written[0], &byte, 1) == -1) _exit(255);
    long wrong = kept(b, 0, BLOCK);
    _exit(wrong > 255 ? 255 : (int)wrong);
  }
  long wrong = rewritten(b, MIDDLE, UPPER);
  close(written[0]);
  close(written[1]);
  int status;
  if (waitpid(child, &status, 0) == -1) fail("waitpid");
  return (struct outcome){0, wrong + (WIFEXITED(status) ? WEXITSTATUS(status) : 1000)};
}

static struct outcome share_with_child(struct block *b, int unused) {
  (void)unused;
  long wrong = kept_at(shared, SMALL, NEW);
  pid_t child = fork();
  if (child == -1) fail("fork");
  if (child == 0) {
    fill_all(shared, SMALL, 2 * NEW);
    _exit(0);
  }
  if (waitpid(child, NULL, 0) == -1) fail("waitpid");
  return (struct outcome){0, wrong + kept_at(shared, SMALL, 2 * NEW) + kept(b, 0, BLOCK)};
}

// Moves or grows pages of a block and looks at what is where it was, if it went, and at what it gained.
static struct outcome remap(struct block *b, long from, long to, long longer, int flags, void *target) {
  unsigned char *old = at(b, from), *new = mremap(old, (to - from) * PAGE, (to - from + longer) * PAGE, flags, target);
  if (new == MAP_FAILED) {
    int error = errno;
    return (struct outcome){error, kept(b, 0, BLOCK)};
  }
  long wrong = kept(b, 0, from) + kept(b, to, BLOCK) + kept_at(new, to - from, b->key + from);
  wrong += zeros_at(new + (to - from) * PAGE, longer);
  if (flags & MREMAP_DONTUNMAP) wrong += zeros(b, from, to);
  else if (new != old) wrong += zeros_at(map(old, to - from, MAP_PRIVATE | MAP_FIXED_NOREPLACE), to - from);
  return (struct outcome){0, wrong};
}

// Behind a block there is room; its last area can be grown where it is.
static struct outcome grow_in_place(struct block *b, int unused) {
  (void)unused;
  return remap(b, UPPER, BLOCK, 100, 0, NULL);
}

static struct outcome grow_area(struct block *b, int unused) {
  (void)unused;
  return remap(b, MIDDLE, UPPER, 200, MREMAP_MAYMOVE, NULL);
}

static struct outcome grow_part(struct block *b, int unused) {
  (void)unused;
  return remap(b, MIDDLE + 10, MIDDLE + 50, 100, MREMAP_MAYMOVE, NULL);
}

static struct outcome grow_lower(struct block *b, int unused) {
  (void)unused;
  return remap(b, LOWER, MIDDLE, 300, MREMAP_MAYMOVE, NULL);
}

static struct outcome move_area(struct block *b, int flags) {
  unsigned char *room = map(NULL, LARGE, MAP_PRIVATE);
  return remap(b, MIDDLE, UPPER, 0, MREMAP_MAYMOVE | MREMAP_FIXED | flags, room);
}

static struct outcome shrink(struct block *b, int unused) {
  (void)unused;
  void *same = mremap(at(b, MIDDLE), LARGE * PAGE, (LARGE - 40) * PAGE, 0);
  if (same == MAP_FAILED) {
    int error = errno;
    return (struct outcome){error, kept(b, 0, BLOCK)};
  }
  long wrong = kept(b, 0, UPPER - 40) + kept(b, UPPER, BLOCK);
  map(at(b, UPPER - 40), 40, MAP_PRIVATE | MAP_FIXED_NOREPLACE);
  return (struct outcome){0, wrong + zeros(b, UPPER - 40, UPPER)};
}

// Once neighbours are alike the kernel may make them one area, which is then grown as one.
static struct outcome grow_merged(struct block *b, int unused) {
  (void)unused;
  if (mprotect(at(b, UPPER), SMALL * PAGE, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
  return remap(b, MIDDLE, BLOCK, 100, MREMAP_MAYMOVE, NULL);
}

static struct outcome protect(struct block *b, int protection) {
  int error = error_of(mprotect(at(b, MIDDLE + 11), 50 * PAGE, protection));
  long wrong = kept(b, 0, MIDDLE + 11) + kept(b, MIDDLE + 61, BLOCK);
  if (mprotect(at(b, LOWER), BLOCK * PAGE, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
  return (struct outcome){error, wrong + kept(b, 0, BLOCK) + rewritten(b, 0, BLOCK)};
}

static struct outcome unmap(struct block *b, int unused) {
  (void)unused;
  int error = error_of(munmap(at(b, MIDDLE + 8), 40 * PAGE));
  map(at(b, MIDDLE + 8), 40, MAP_PRIVATE | MAP_FIXED_NOREPLACE);
  long wrong = kept(b, 0, MIDDLE + 8) + zeros(b, MIDDLE + 8, MIDDLE + 48) + kept(b, MIDDLE + 48, BLOCK);
  return (struct outcome){error, wrong + rewritten(b, MIDDLE, UPPER)};
}

static struct outcome map_over(struct block *b, int unused) {
  (void)unused;
  map(at(b, MIDDLE - 4), 40, MAP_PRIVATE | MAP_FIXED);
  return (struct outcome){0, kept(b, 0, MIDDLE - 4) + zeros(b, MIDDLE - 4, MIDDLE + 36) + kept(b, MIDDLE + 36, BLOCK)};
}

static struct outcome synchronise(struct block *b, int flags) {
  long wrong = rewritten(b, MIDDLE, UPPER);
  int error = error_of(msync(at(b, MIDDLE), LARGE * PAGE, flags));
  return (struct outcome){error, wrong + kept_at(at(b, MIDDLE), LARGE, NEW + MIDDLE) + kept(b, UPPER, BLOCK)};
}

static struct outcome lock(struct block *b, int unused) {
  (void)unused;
  int error = error_of(mlock(at(b, MIDDLE), LARGE * PAGE));
  long wrong = kept(b, 0, BLOCK);
  if (error == 0 && munlock(at(b, MIDDLE), LARGE * PAGE) != 0) fail("munlock");
  return (struct outcome){error, wrong + kept(b, 0, BLOCK)};
}

// Writes as a debugger would, also to what can only be read.
static struct outcome write_from_outside(struct block *b, int unused) {
  (void)unused;
  int memory = open("/proc/self/mem", O_RDWR);
  if (memory == -1) return (struct outcome){errno, kept(b, 0, BLOCK)};
  unsigned char page[PAGE];
  int error = 0;
  for (long i = UPPER - 20; i < UPPER + 20 && error == 0; i++) {
    fill(page, NEW + i);
    error = error_of(pwrite(memory, page, PAGE, (off_t)(uintptr_t)at(b, i)));
  }
  close(memory);
  long wrong = kept(b, 0, UPPER - 20) + kept(b, UPPER + 20, BLOCK);
  return (struct outcome){error, wrong + (error ? 0 : kept_at(at(b, UPPER - 20), 40, NEW + UPPER - 20))};
}

// The kernel itself writes to it: what is read from a pipe.
static struct outcome read_into(struct block *b, int unused) {
  (void)unused;
  int ends[2];
  if (pipe(ends) != 0) fail("pipe");
  unsigned char page[PAGE];
  int error = 0;
  for (long i = MIDDLE; i < UPPER && error == 0; i++) {
    fill(page, NEW + i);
    if (write(ends[1], page, PAGE) != PAGE || read(ends[0], at(b, i), PAGE) != PAGE) error = errno;
  }
  close(ends[0]);
  close(ends[1]);
  return (struct outcome){error, kept_at(at(b, MIDDLE), LARGE, NEW + MIDDLE) + kept(b, UPPER, BLOCK)};
}

// What a file's private mapping was changed to is dropped: the file's own content is read again.
static struct outcome discard_changes(struct block *b, int advice) {
  int error = error_of(madvise(changed, FILE_PAGES * PAGE, advice));
  long wrong = error ? wrong_in_file() : kept_at(changed, FILE_PAGES, FILE_KEY);
  return (struct outcome){error, wrong + kept(b, 0, BLOCK)};
}

// Up: zeros. Down, below what was there at the dump, and up again: zeros. What was not given back stays.
static struct outcome move_break(struct block *b, int unused) {
  (void)unused;
  enum { MORE = 256 };
  unsigned char *end = brk_area + BRK_PAGES * PAGE;
  if (sbrk(0) != end) return (struct outcome){EBUSY, kept(b, 0, BLOCK)};
  int error = error_of(brk(end + MORE * PAGE));
  if (error) return (struct outcome){error, kept_at(brk_area, BRK_PAGES, BRK_KEY)};
  long wrong = kept_at(brk_area, BRK_PAGES, BRK_KEY) + zeros_at(end, MORE);
  fill_all(end, MORE, NEW);
  wrong += kept_at(end, MORE, NEW);
  if (brk(end - MORE * PAGE) != 0 || brk(end + MORE * PAGE) != 0) fail("brk");
  wrong += kept_at(brk_area, BRK_PAGES - MORE, BRK_KEY) + zeros_at(end - MORE * PAGE, 2 * MORE);
  fill_all(end - MORE * PAGE, 2 * MORE, NEW);
  wrong += kept_at(end - MORE * PAGE, 2 * MORE, NEW);
  return (struct outcome){0, wrong + kept(b, 0, BLOCK)};
}

static const struct {
  const char *name;
  struct outcome (*run)(struct block *, int);
  int argument;
} OPERATIONS[] = {
  {"madvise DONTNEED, an area", discard_area, MADV_DONTNEED},
  {"madvise DONTNEED, a part", discard_part, MADV_DONTNEED},
  {"madvise DONTNEED, over neighbours", discard_across, MADV_DONTNEED},
  {"madvise DONTNEED, written", discard_written, MADV_DONTNEED},
  {"madvise DONTNEED, a changed file", discard_changes, MADV_DONTNEED},
  {"madvise DONTNEED_LOCKED", discard_area, MADV_DONTNEED_LOCKED},
  {"madvise FREE", free_lazily, MADV_FREE},
  {"madvise GUARD_INSTALL", install_guards, MADV_GUARD_INSTALL},
  {"madvise WIPEONFORK", wipe_on_fork, MADV_WIPEONFORK},
  {"madvise REMOVE", advise, MADV_REMOVE},
  {"madvise WILLNEED", advise, MADV_WILLNEED},
  {"madvise COLD", advise, MADV_COLD},
  {"madvise PAGEOUT", advise, MADV_PAGEOUT},
  {"madvise POPULATE_READ", advise, MADV_POPULATE_READ},
  {"madvise POPULATE_WRITE", advise, MADV_POPULATE_WRITE},
  {"madvise SEQUENTIAL", advise, MADV_SEQUENTIAL},
  {"madvise RANDOM", advise, MADV_RANDOM},
  {"madvise HUGEPAGE", advise, MADV_HUGEPAGE},
  {"madvise COLLAPSE", advise, MADV_COLLAPSE},
  {"madvise MERGEABLE", advise, MADV_MERGEABLE},
  {"madvise DONTDUMP", advise, MADV_DONTDUMP},
  {"madvise DONTFORK", advise, MADV_DONTFORK},
  {"mremap, longer in place", grow_in_place, 0},
  {"mremap, longer", grow_area, 0},
  {"mremap, a part longer", grow_part, 0},
  {"mremap, the lower neighbour longer", grow_lower, 0},
  {"mremap, merged neighbours longer", grow_merged, 0},
  {"mremap, shorter", shrink, 0},
  {"mremap, elsewhere", move_area, 0},
  {"mremap, elsewhere, DONTUNMAP", move_area, MREMAP_DONTUNMAP},
  {"mprotect NONE", protect, PROT_NONE},
  {"mprotect READ", protect, PROT_READ},
  {"munmap, mmap", unmap, 0},
  {"mmap FIXED", map_over, 0},
  {"msync SYNC", synchronise, MS_SYNC},
  {"msync INVALIDATE", synchronise, MS_INVALIDATE},
  {"mlock", lock, 0},
  {"write to /proc/self/mem", write_from_outside, 0},
  {"read from a pipe", read_into, 0},
  {"fork, the child writes", fork_writes, 0},
  {"fork, the child discards", fork_discards, 0},
  {"fork, twice", fork_twice, 0},
  {"fork, the parent writes", parent_writes, 0},
  {"fork, shared memory", share_with_child, 0},
  {"brk up, down, up", move_break, 0},
};

void write_operations(int out) {
  const int count = sizeof OPERATIONS / sizeof OPERATIONS[0];
  _Static_assert(sizeof OPERATIONS / sizeof OPERATIONS[0] <= BLOCKS - 2, "each operation has a block of its own");
  // One has two, the last ones.
  struct block *two = &blocks[BLOCKS - 2];
  dprintf(out, "[");
  for (int i = 0; i < count; i++) {
    struct block *b = OPERATIONS[i].run == fork_twice ? two : &blocks[i];
    struct outcome found = OPERATIONS[i].run(b, OPERATIONS[i].argument);
    const char *error = found.error ? strerrorname_np(found.error) : "";
    dprintf(out, "%s{\"op\": \"%s\", \"error\": \"%s\", \"wrong\": %ld}", i ? ", " : "", OPERATIONS[i].name, error, found.wrong);
  }
  dprintf(out, "]");
}
