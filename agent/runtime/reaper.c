/*
 * Runs a program and adopts what its descendants leave behind, so that somebody knows how they ended.
 *
 *   reaper FILE PROGRAM [ARGUMENT...]
 *
 * An instance's first process outlives the runc that started it, and its exit status goes to whoever adopts it. That is
 * this program, as a "child subreaper" between the container's process 1 and the agent. It adds a line to FILE for each:
 * "PID STARTED STATUS", where STARTED is field 22 of /proc/PID/stat, which tells two users of one number apart, and
 * STATUS is the exit code, or 128 and the signal. FILE is emptied when it has grown to 64 KiB: it is read soon or never.
 *
 * SIGTERM and SIGINT are passed on. It ends as PROGRAM does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT (64 * 1024)

static volatile pid_t child;

static void pass_on(int number) {
  if (child > 0) kill(child, number);
}

/* Field 22 of the stat file of a process that is a zombie by now; 0 when it cannot be read. */
static unsigned long long started_at(pid_t pid) {
  char path[64], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return 0;
  text[length] = '\0';
  /* The second field is a name in brackets that may hold anything. */
  char *at = strrchr(text, ')');
  for (int field = 2; at != NULL && field < 22; field++) at = strchr(at + 1, ' ');
  unsigned long long started = 0;
  if (at != NULL) sscanf(at, " %llu", &started);
  return started;
}

static void note(int file, pid_t pid, unsigned long long started, int status) {
  char line[80];
  int length = snprintf(line, sizeof line, "%d %llu %d\n", (int)pid, started, status);
  struct stat about;
  if (fstat(file, &about) == 0 && about.st_size > LIMIT && ftruncate(file, 0) != 0) return;
  /* A full tmpfs loses the line; the agent then reports an end without a status. */
  if (write(file, line, (size_t)length) < 0) return;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: reaper FILE PROGRAM [ARGUMENT...]\n");
    return 2;
  }
  if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) {
    perror("reaper: PR_SET_CHILD_SUBREAPER");
    return 1;
  }
  int file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (file < 0) {
    fprintf(stderr, "reaper: %s: %s\n", argv[1], strerror(errno));
    return 1;
  }
  struct sigaction action = {.sa_handler = pass_on};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  child = fork();
  if (child < 0) {
    perror("reaper: fork");
    return 1;
  }
  if (child == 0) {
    execvp(argv[2], argv + 2);
    fprintf(stderr, "reaper: %s: %s\n", argv[2], strerror(errno));
    _exit(127);
  }
  for (;;) {
    siginfo_t ended;
    if (waitid(P_ALL, 0, &ended, WEXITED | WNOWAIT) != 0) {
      if (errno == EINTR) continue;
      perror("reaper: waitid");
      return 1;
    }
    int status = ended.si_code == CLD_EXITED ? ended.si_status : 128 + ended.si_status;
    note(file, ended.si_pid, started_at(ended.si_pid), status);
    waitpid(ended.si_pid, NULL, 0);
    if (ended.si_pid == child) return status;
  }
}
