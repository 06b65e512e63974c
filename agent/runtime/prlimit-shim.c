/*
 * Lets CRIU read the resource limits of another user's process where root lacks CAP_SYS_RESOURCE.
 *
 * CRIU asks with syscall(SYS_prlimit64, pid, resource, NULL, &limit). Without that capability the kernel refuses as
 * soon as the process belongs to another user, and the dump ends with "Can't get rlimit". /proc/PID/limits tells the
 * same figures to root. So: preloaded into criu, this library answers a refused read from there and passes every other
 * call through unchanged.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>

/* The rows of /proc/PID/limits, indexed by RLIMIT_* (fs/proc/base.c in the kernel). */
static const char *const rows[] = {
    [RLIMIT_CPU] = "Max cpu time",           [RLIMIT_FSIZE] = "Max file size",
    [RLIMIT_DATA] = "Max data size",         [RLIMIT_STACK] = "Max stack size",
    [RLIMIT_CORE] = "Max core file size",    [RLIMIT_RSS] = "Max resident set",
    [RLIMIT_NPROC] = "Max processes",        [RLIMIT_NOFILE] = "Max open files",
    [RLIMIT_MEMLOCK] = "Max locked memory",  [RLIMIT_AS] = "Max address space",
    [RLIMIT_LOCKS] = "Max file locks",       [RLIMIT_SIGPENDING] = "Max pending signals",
    [RLIMIT_MSGQUEUE] = "Max msgqueue size", [RLIMIT_NICE] = "Max nice priority",
    [RLIMIT_RTPRIO] = "Max realtime priority", [RLIMIT_RTTIME] = "Max realtime timeout",
};

static rlim_t figure(const char *text) {
  return strcmp(text, "unlimited") == 0 ? RLIM_INFINITY : strtoull(text, NULL, 10);
}

static int read_limit(long pid, unsigned long resource, struct rlimit *limit) {
  char path[64], line[256], soft[32], hard[32];
  int found = 0;
  if (resource >= sizeof rows / sizeof *rows) return 0;
  snprintf(path, sizeof path, "/proc/%ld/limits", pid);
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  const size_t width = strlen(rows[resource]);
  while (!found && fgets(line, sizeof line, file))
    if (strncmp(line, rows[resource], width) == 0 && sscanf(line + width, "%31s %31s", soft, hard) == 2) {
      limit->rlim_cur = figure(soft);
      limit->rlim_max = figure(hard);
      found = 1;
    }
  fclose(file);
  return found;
}

long syscall(long number, long a, long b, long c, long d, long e, long f) {
  static long (*next)(long, ...);
  if (!next) next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  const long result = next(number, a, b, c, d, e, f);
  if (result != -1 || errno != EPERM || number != SYS_prlimit64 || c || !d) return result;
  if (read_limit(a, (unsigned long)b, (struct rlimit *)d)) return 0;
  errno = EPERM;
  return -1;
}
