/** A run of pages of one dumped process, in address order. Addresses and sizes in bytes, multiples of 4096. */
export interface PageRun {
  start: bigint;
  pages: number;
  /** Where its bytes lie. */
  file: string;
  offset: number;
}

/** One area of a dumped process's address space, as CRIU's image of it says. */
export interface Area {
  start: bigint;
  end: bigint;
  /** What kind of area it is, in bits of CRIU: {@link STATUS}. */
  status: number;
  /** As given to mmap: {@link FLAG}. */
  flags: number;
  /** PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4. */
  prot: number;
  /** Id of its file or 0n. */
  shmid: bigint;
  /** Where in its file it begins, in bytes. */
  pgoff: bigint;
  /** Bit N is set where madvise with the advice N holds for it: {@link ADVICE}. Absent: none does. */
  madv?: bigint;
}

/** What a dump holds of one process's memory. */
export interface ProcessMemory {
  /** Its number inside the instance. */
  pid: number;
  /**
   * In address order; after them the stretches where guard pages are installed (`STATUS.guard`), which are no areas of
   * their own but lie inside others: nothing can be read there.
   */
  areas: Area[];
  /** What the dump holds pages of, in address order, without overlaps. */
  runs: PageRun[];
}

/** Bytes of a page. Dumps are made and restored on machines with this size only. */
export const PAGE = 4096;

/** Bits of an area's status. They belong to CRIU's image format (`criu/include/image.h` in its 4.2). */
export const STATUS = {
  /** Its content is part of the dump. */
  regular: 1 << 0,
  stack: 1 << 1,
  vsyscall: 1 << 2,
  vdso: 1 << 3,
  heap: 1 << 5,
  filePrivate: 1 << 6,
  fileShared: 1 << 7,
  anonymousShared: 1 << 8,
  anonymousPrivate: 1 << 9,
  sysvShared: 1 << 10,
  socket: 1 << 11,
  vvar: 1 << 12,
  aioRing: 1 << 13,
  memfd: 1 << 14,
  shadowStack: 1 << 15,
  guard: 1 << 16,
  uprobes: 1 << 17,
} as const;

/** Flags of mmap(2) that matter here (Linux on x86-64 and arm64). */
export const FLAG = {
  shared: 0x01,
  private: 0x02,
  droppable: 0x08,
  /** One of the three above, under this mask. */
  kind: 0x0f,
  anonymous: 0x20,
  growsDown: 0x100,
  locked: 0x2000,
  hugePages: 0x40000,
} as const;

/** Advice of madvise(2) that matters here. */
export const ADVICE = { wipeOnFork: 18n } as const;
