#include "heap.h"
#include <pthread.h>
#include <string.h>

static unsigned char common[PAGE];
static uint32_t table[256];

static void prepare(void) {
  for (int i = 0; i < PAGE; i++) common[i] = (unsigned char)(i * 167 + (i >> 8) * 59 + 1);
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t rest = i;
    for (int bit = 0; bit < 8; bit++) rest = rest & 1 ? rest >> 1 ^ 0xedb88320 : rest >> 1;
    table[i] = rest;
  }
}

static void once(void) {
  static pthread_once_t done = PTHREAD_ONCE_INIT;
  pthread_once(&done, prepare);
}

void fill(unsigned char *page, uint64_t key) {
  once();
  memcpy(page, &key, sizeof key);
  memcpy(page + sizeof key, common + sizeof key, PAGE - sizeof key);
}

bool holds(const unsigned char *page, uint64_t key) {
  once();
  return memcmp(page, &key, sizeof key) == 0 && memcmp(page + sizeof key, common + sizeof key, PAGE - sizeof key) == 0;
}

bool is_zero(const unsigned char *page) {
  return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

uint32_t crc32(uint32_t crc, const unsigned char *bytes, long count) {
  once();
  crc = ~crc;
  for (long i = 0; i < count; i++) crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 255];
  return ~crc;
}
