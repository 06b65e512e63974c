import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { Pagemap, readMaps } from '../../agent/memory/kernel-view.js';
import { type Area, FLAG, PAGE, type PageRun, type ProcessMemory, STATUS } from '../../agent/memory/model.js';

/** Processes with known mappings, for tests that look at real memory. */

/** What a process maps besides its own: private, readable and writable. */
export interface Wanted {
  pages: number;
  /** Without: memory without a file. */
  file?: string;
  /** Bytes. */
  offset?: number;
}

/** Numbers of mmap(2), which Perl passes on as they are. */
const MMAP: Partial<Record<NodeJS.Architecture, number>> = { x64: 9, arm64: 222 };

/** Whether this machine can run these tests: only root may read what a mapping's file is. */
export const CAN = process.getuid?.() === 0 && MMAP[process.arch] !== undefined;

/** Maps what its arguments say with a page between any two, prints the addresses, and waits; a fork of it after that. */
const SCRIPT = `
use strict; $| = 1;
my ($mmap, $fork, @wanted) = @ARGV;
my (@found, @files);
for my $one (@wanted) {
  my ($pages, $offset, $name) = split /:/, $one, 3;
  my ($flags, $fd) = (0x22, -1);
  if ($name ne '') { open(my $file, '<', $name) or die "$name: $!"; $flags = 2; $fd = fileno($file); push @files, $file; }
  my $room = syscall($mmap + 0, 0, ($pages + 2) * 4096, 0, 0x22, -1, 0);
  my $address = syscall($mmap + 0, $room + 4096, $pages * 4096, 3, $flags | 0x10, $fd, $offset + 0);
  die "mmap: $!" if $address == -1;
  push @found, $address;
}
my $pid = $fork ? fork() : 0;
print join(' ', $fork ? $pid : 0, @found), "\\n" if !$fork || $pid;
sleep 60;
`;

/** A process that was started by a test; {@link end} must be called. */
export class Child {
  readonly pid: number;
  /** Of a process that it forked, with {@link start}'s `fork`. */
  readonly child: number;
  /** Where the wanted mappings are, in their order. */
  readonly addresses: readonly bigint[];
  readonly #process: ChildProcess;

  private constructor(process: ChildProcess, pid: number, child: number, addresses: readonly bigint[]) {
    this.#process = process;
    this.pid = pid;
    this.child = child;
    this.addresses = addresses;
  }

  static async start(wanted: readonly Wanted[], fork = false): Promise<Child> {
    const args = wanted.map(({ pages, offset = 0, file = '' }) => `${pages}:${offset}:${file}`);
    const process_ = spawn('perl', ['-e', SCRIPT, `${MMAP[process.arch]}`, fork ? '1' : '', ...args], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = (await Promise.race([
      once(process_.stdout!, 'data'),
      once(process_, 'exit').then(([code]) => {
        throw new Error(`the process ended with ${code} before it had its mappings`);
      }),
    ])) as [Buffer];
    const [child = '0', ...addresses] = line.toString().trim().split(' ');
    return new Child(process_, process_.pid!, Number(child), addresses.map(BigInt));
  }

  /** Stops it, as a restore with leave-stopped does. */
  stop(): void {
    process.kill(this.pid, 'SIGSTOP');
  }

  write(address: bigint, bytes: Buffer): void {
    const fd = openSync(`/proc/${this.pid}/mem`, 'r+');
    try {
      writeSync(fd, bytes, 0, bytes.length, Number(address));
    } finally {
      closeSync(fd);
    }
  }

  read(address: bigint, length: number): Buffer {
    const fd = openSync(`/proc/${this.pid}/mem`, 'r');
    try {
      const bytes = Buffer.alloc(length);
      readSync(fd, bytes, 0, length, Number(address));
      return bytes;
    } finally {
      closeSync(fd);
    }
  }

  async end(): Promise<void> {
    if (this.child !== 0) process.kill(this.child, 'SIGKILL');
    const exit = once(this.#process, 'exit');
    if (this.#process.exitCode === null && this.#process.signalCode === null) {
      this.#process.kill('SIGKILL');
      await exit;
    }
  }
}

/**
 * What CRIU would write of a stopped process: its mappings as areas, and every page that it has of those that it may write
 * to, with their bytes in `file`. `as` is its number in the dump.
 */
export async function dumpOf(child: Child, file: string, as = 1): Promise<ProcessMemory> {
  const areas: Area[] = [];
  const runs: PageRun[] = [];
  const out = await open(file, 'w');
  const pagemap = await Pagemap.open(child.pid);
  try {
    let offset = 0;
    for (const { start, end, permissions, inode, path, offset: pgoff } of await readMaps(child.pid)) {
      const kind = kindOf(path, inode);
      const flags = FLAG.private | (inode === 0n ? FLAG.anonymous : 0) | (path === '[stack]' ? FLAG.growsDown : 0);
      const prot = ['r', 'w', 'x'].reduce((sum, letter, bit) => sum | (permissions.includes(letter) ? 1 << bit : 0), 0);
      areas.push({ start, end, status: STATUS.regular | kind, flags, prot, shmid: inode, pgoff: BigInt(pgoff) });
      if (!permissions.includes('w')) continue;
      for await (const there of pagemap.there({ start, end }, new AbortController().signal)) {
        const bytes = child.read(there.start, Number(there.end - there.start));
        await out.write(bytes, 0, bytes.length, offset);
        runs.push({ start: there.start, pages: bytes.length / PAGE, file, offset });
        offset += bytes.length;
      }
    }
  } finally {
    await pagemap.close();
    await out.close();
  }
  return { pid: as, areas, runs };
}

function kindOf(path: string, inode: bigint): number {
  if (path === '[vdso]') return STATUS.vdso | STATUS.anonymousPrivate;
  if (path.startsWith('[vvar')) return STATUS.vvar | STATUS.anonymousPrivate;
  if (path === '[vsyscall]') return STATUS.vsyscall;
  if (path === '[heap]') return STATUS.heap | STATUS.anonymousPrivate;
  return inode === 0n ? STATUS.anonymousPrivate : STATUS.filePrivate;
}
