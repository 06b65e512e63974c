/*
 * Does what must be done in the process that becomes a program, step by step, and then becomes it. CRIU is started so:
 * what it restores are its children, and has its cgroups. One small program instead of a shell: it is on the path of a
 * request.
 *
 *   enter STEP... -- PROGRAM [ARGUMENT...]
 *   enter STEP... done
 *
 *   rest                takes the arguments from here on from standard input, each with a NUL after it, up to the next
 *                       "rest" or to its end; that is /dev/null then. So it can be started before they are known
 *   overlay DIR ROOT OPTIONS                             mounts an overlay at ROOT; relative layers are below DIR
 *   unmount DIR         unmounts what is mounted at DIR
 *   cgroup DIR          joins a cgroup: the kernel may take 10 ms and more for the first
 *   own-cgroups         a cgroup namespace whose roots are the cgroups joined so far
 *   devices DIR RULES   lets a version 2 cgroup use these devices only. RULES: "TYPE MAJOR MINOR ACCESS", separated by
 *                       commas; TYPE "c", "b"; MAJOR and MINOR numbers or "*"; ACCESS of "r", "w" and "m"
 *   own-mounts          a mount namespace: what is mounted from here on goes with the program and what it starts
 *   tmpfs DIR SOURCE OPTIONS                             makes the folder DIR and mounts a tmpfs there
 *   folder PATH UID GID MODE                             makes a folder, or gives one that is there owner and mode
 *   link PATH UID GID TARGET                             makes a symbolic link
 *   device PATH UID GID MODE TYPE MAJOR MINOR            makes a device file
 *   read-only DIR       lets nothing be written to the file system mounted at DIR any more
 *   open N MODE FILE    opens FILE as descriptor N, MODE "r" to read, "a" to append, also
 *                       to a file that is not there yet
 *
 * The first step that fails ends it with exit code 125 and a message on standard error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FAILED 125
#define MAX_RULES 64
/* Most instructions that one rule becomes. */
#define RULE_SIZE 8

static void fail(const char *step, const char *what) {
  fprintf(stderr, "enter: %s %s: %s\n", step, what, strerror(errno));
  exit(FAILED);
}

static void join(const char *dir) {
  char path[4096];
  snprintf(path, sizeof path, "%s/cgroup.procs", dir);
  int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0 || write(file, "0", 1) != 1) fail("cgroup", dir);
  close(file);
}

static struct bpf_insn insn(uint8_t code, uint8_t dst, uint8_t src, int16_t off, int32_t imm) {
  return (struct bpf_insn){.code = code, .dst_reg = dst, .src_reg = src, .off = off, .imm = imm};
}

/* Appends "when register DST is not IMM, go on after this rule"; the distance is set when the rule is complete. */
static int unless(struct bpf_insn *at, uint8_t dst, int32_t imm) {
  *at = insn(BPF_JMP | BPF_JNE | BPF_K, dst, 0, 0, imm);
  return 1;
}

/*
 * A filter of devices is a program that the kernel asks with type, access, major and minor number: 1 lets it, 0 does not
 * (struct bpf_cgroup_dev_ctx). One of the rules must allow all of what is asked for.
 */
static void limit_devices(const char *dir, char *rules) {
  static struct bpf_insn program[MAX_RULES * RULE_SIZE + 8];
  int length = 0;
  program[length++] = insn(BPF_LDX | BPF_MEM | BPF_W, 2, 1, 0, 0);
  program[length++] = insn(BPF_ALU64 | BPF_MOV | BPF_X, 3, 2, 0, 0);
  program[length++] = insn(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, 0xffff);
  program[length++] = insn(BPF_ALU64 | BPF_RSH | BPF_K, 3, 0, 0, 16);
  program[length++] = insn(BPF_LDX | BPF_MEM | BPF_W, 4, 1, 4, 0);
  program[length++] = insn(BPF_LDX | BPF_MEM | BPF_W, 5, 1, 8, 0);
  int count = 0;
  for (char *rule = strtok(rules, ","); rule != NULL; rule = strtok(NULL, ",")) {
    char type, major[16], minor[16], access[4];
    errno = EINVAL;
    if (++count > MAX_RULES || sscanf(rule, " %c %15s %15s %3s", &type, major, minor, access) != 4) fail("devices", rule);
    if ((type != 'b' && type != 'c') || access[strspn(access, "rwm")] != '\0') fail("devices", rule);
    int allowed = 0;
    for (const char *c = access; *c != '\0'; c++) {
      allowed |= *c == 'm' ? BPF_DEVCG_ACC_MKNOD : *c == 'r' ? BPF_DEVCG_ACC_READ : BPF_DEVCG_ACC_WRITE;
    }
    int start = length;
    length += unless(&program[length], 2, type == 'b' ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR);
    program[length++] = insn(BPF_ALU64 | BPF_MOV | BPF_X, 0, 3, 0, 0);
    program[length++] = insn(BPF_ALU64 | BPF_AND | BPF_K, 0, 0, 0, 7 & ~allowed);
    length += unless(&program[length], 0, 0);
    if (strcmp(major, "*") != 0) length += unless(&program[length], 4, atoi(major));
    if (strcmp(minor, "*") != 0) length += unless(&program[length], 5, atoi(minor));
    program[length++] = insn(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 1);
    program[length++] = insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
    for (int i = start; i < length; i++) {
      if (program[i].code == (BPF_JMP | BPF_JNE | BPF_K)) program[i].off = (int16_t)(length - i - 1);
    }
  }
  program[length++] = insn(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
  program[length++] = insn(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

  union bpf_attr load = {
      .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
      .insns = (uint64_t)(uintptr_t)program,
      .insn_cnt = (uint32_t)length,
      .license = (uint64_t)(uintptr_t) "MIT",
  };
  int filter = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof load);
  if (filter < 0) fail("devices", "(BPF_PROG_LOAD)");
  int cgroup = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (cgroup < 0) fail("devices", dir);
  union bpf_attr attach = {
      .target_fd = (uint32_t)cgroup,
      .attach_bpf_fd = (uint32_t)filter,
      .attach_type = BPF_CGROUP_DEVICE,
      .attach_flags = BPF_F_ALLOW_MULTI,
  };
  if (syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof attach) != 0) fail("devices", dir);
  close(filter);
  close(cgroup);
}

/*
 * What is mounted in it does not show outside. What is mounted outside shows in it: CRIU needs the peer groups of the
 * mounts that it hands on, which private ones would have lost.
 */
static void own_mounts(void) {
  if (unshare(CLONE_NEWNS) != 0) fail("own-mounts", "");
  if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) != 0) fail("own-mounts", "/");
}

static void mount_tmpfs(const char *dir, const char *source, const char *options) {
  if (mkdir(dir, 0700) != 0) fail("tmpfs", dir);
  if (mount(source, dir, "tmpfs", 0, options) != 0) fail("tmpfs", dir);
}

/* By mount(2), whose options may be a page long; DIR is where relative layers are. */
static void mount_overlay(const char *dir, const char *root, const char *options) {
  if (chdir(dir) != 0) fail("overlay", dir);
  if (mount("overlay", root, "overlay", 0, options) != 0) fail("overlay", root);
  if (chdir("/") != 0) fail("overlay", "/");
}

static void own(const char *path, char **owner) {
  if (lchown(path, (uid_t)strtoul(owner[0], NULL, 10), (gid_t)strtoul(owner[1], NULL, 10)) != 0) fail("owner of", path);
}

/* After the owner, whose change takes away set-user-ID bits. */
static void permit(const char *path, const char *mode) {
  if (chmod(path, (mode_t)strtoul(mode, NULL, 8)) != 0) fail("mode of", path);
}

static void make_folder(const char *path, char **owner, const char *mode) {
  if (mkdir(path, 0700) != 0 && errno != EEXIST) fail("folder", path);
  own(path, owner);
  permit(path, mode);
}

static void make_device(const char *path, char **owner, const char *mode, char **device) {
  mode_t type = strcmp(device[0], "b") == 0 ? S_IFBLK : S_IFCHR;
  if (mknod(path, type | 0600, makedev((unsigned)atoi(device[1]), (unsigned)atoi(device[2]))) != 0) fail("device", path);
  own(path, owner);
  permit(path, mode);
}

static void open_as(int number, const char *mode, const char *path) {
  int file = open(path, strcmp(mode, "a") == 0 ? O_WRONLY | O_APPEND | O_CREAT : O_RDONLY, 0644);
  if (file < 0) fail("open", path);
  if (file == number) return;
  if (dup2(file, number) < 0) fail("open", path);
  close(file);
}

/* What has come on standard input, and how much of it was taken. */
static struct {
  char *text;
  size_t size, length, next;
  int over;
} input;

/* The next argument on standard input, or NULL where that ends. */
static char *read_argument(void) {
  for (;;) {
    char *start = input.text + input.next;
    char *end = input.length > input.next ? memchr(start, '\0', input.length - input.next) : NULL;
    if (end != NULL) {
      input.next += (size_t)(end - start) + 1;
      return strdup(start);
    }
    if (input.over) return NULL;
    if (input.length == input.size) {
      input.size = input.size * 2 + 16384;
      if ((input.text = realloc(input.text, input.size)) == NULL) fail("rest", "memory");
    }
    ssize_t got = read(STDIN_FILENO, input.text + input.length, input.size - input.length);
    if (got < 0 && errno != EINTR) fail("rest", "standard input");
    if (got == 0) input.over = 1;
    if (got > 0) input.length += (size_t)got;
  }
}

/* The arguments on standard input up to the next "rest", with that, or to its end, as a list that ends with NULL. */
static char **read_arguments(int *count) {
  char **list = NULL;
  int goes_on = 0;
  for (*count = 0; !goes_on; *count += 1) {
    if (*count % 64 == 0 && (list = realloc(list, (size_t)(*count + 65) * sizeof *list)) == NULL) fail("rest", "memory");
    char *argument = read_argument();
    if ((list[*count] = argument) == NULL) break;
    goes_on = strcmp(argument, "rest") == 0;
    list[*count + 1] = NULL;
  }
  if (!goes_on) open_as(STDIN_FILENO, "r", "/dev/null");
  return list;
}

int main(int argc, char **argv) {
  int at = 1;
  while (at < argc && strcmp(argv[at], "--") != 0) {
    char **step = argv + at;
    int left = argc - at - 1;
    if (strcmp(step[0], "rest") == 0) {
      argv = read_arguments(&argc);
      at = 0;
      /* Whoever started it has ended without a word. */
      if (argc == 0) return 0;
    } else if (strcmp(step[0], "done") == 0) {
      return 0;
    } else if (strcmp(step[0], "overlay") == 0 && left >= 3) {
      mount_overlay(step[1], step[2], step[3]);
      at += 4;
    } else if (strcmp(step[0], "unmount") == 0 && left >= 1) {
      if (umount2(step[1], 0) != 0) fail(step[0], step[1]);
      at += 2;
    } else if (strcmp(step[0], "cgroup") == 0 && left >= 1) {
      join(step[1]);
      at += 2;
    } else if (strcmp(step[0], "own-cgroups") == 0) {
      if (unshare(CLONE_NEWCGROUP) != 0) fail(step[0], "");
      at += 1;
    } else if (strcmp(step[0], "devices") == 0 && left >= 2) {
      limit_devices(step[1], step[2]);
      at += 3;
    } else if (strcmp(step[0], "own-mounts") == 0) {
      own_mounts();
      at += 1;
    } else if (strcmp(step[0], "tmpfs") == 0 && left >= 3) {
      mount_tmpfs(step[1], step[2], step[3]);
      at += 4;
    } else if (strcmp(step[0], "folder") == 0 && left >= 4) {
      make_folder(step[1], step + 2, step[4]);
      at += 5;
    } else if (strcmp(step[0], "link") == 0 && left >= 4) {
      if (symlink(step[4], step[1]) != 0) fail(step[0], step[1]);
      own(step[1], step + 2);
      at += 5;
    } else if (strcmp(step[0], "device") == 0 && left >= 7) {
      make_device(step[1], step + 2, step[4], step + 5);
      at += 8;
    } else if (strcmp(step[0], "read-only") == 0 && left >= 1) {
      if (mount(NULL, step[1], NULL, MS_REMOUNT | MS_RDONLY, NULL) != 0) fail(step[0], step[1]);
      at += 2;
    } else if (strcmp(step[0], "open") == 0 && left >= 3) {
      open_as(atoi(step[1]), step[2], step[3]);
      at += 4;
    } else {
      fprintf(stderr, "enter: no such step, or not all of it: %s\n", step[0]);
      return FAILED;
    }
  }
  if (at + 1 >= argc) {
    fprintf(stderr, "usage: enter STEP... -- PROGRAM [ARGUMENT...]\n");
    return FAILED;
  }
  execvp(argv[at + 1], argv + at + 1);
  fail("--", argv[at + 1]);
}
