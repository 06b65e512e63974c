// Pages that can be told apart, and what is found in them.
#include <stdbool.h>
#include <stdint.h>

enum { PAGE = 4096 };

// Fills a page: its key in the first eight bytes, then what all pages have in common.
void fill(unsigned char *page, uint64_t key);

// Whether a page holds, byte by byte, what `fill` made of it; whether it holds zeros only.
bool holds(const unsigned char *page, uint64_t key);
bool is_zero(const unsigned char *page);

// CRC-32 as zlib has it; `crc` is that of what went before, 0 at first.
uint32_t crc32(uint32_t crc, const unsigned char *bytes, long count);

// Makes the areas that the operations are tried on. Before the dump, once.
void make_areas(void);

// Pages of those areas that are not as they were made.
long wrong_in_areas(void);

// Does every operation, each on areas of its own, and tells of it: {"op", "error", "wrong"} for each. Once.
void write_operations(int out);
