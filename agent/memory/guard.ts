import type { OciSpec } from '../runtime/spec.js';

/**
 * The guard: system calls that a process with mapped memory must not get through, because they mean "give me zeros" and a
 * private mapping of a file would answer with what the file holds, the content at the dump. They fail instead, as they may
 * anywhere, and callers then do the work themselves.
 *
 * Refused (each seen to show the file's content again on a 6.18 kernel):
 * - madvise with MADV_DONTNEED, or MADV_DONTNEED_LOCKED (since 5.18): the pages are dropped, the next read brings the file's.
 * - madvise with MADV_GUARD_INSTALL (for files since 6.15; it fails before, with this error): drops the pages as well, and
 *   MADV_GUARD_REMOVE shows the file's. glibc makes thread stacks with it since 2.42, and uses mprotect where it fails.
 * - process_madvise with the same advice: since 6.13 a process may give itself any. Of another process it may only ask what
 *   keeps the content. Docker allows the call with CAP_SYS_PTRACE alone; where it is not allowed, nothing is added.
 * - mremap, whatever it is asked: a part of a mapping that is made longer shows what follows it in the file, which is its old
 *   neighbour's content, and MREMAP_DONTUNMAP (for files since 5.13) leaves the file's content behind. A filter can compare
 *   arguments with constants only, so growing is not told from moving or shrinking. It fails with ENOMEM, which every
 *   caller must expect: realloc of glibc and musl, PHP, LuaJIT and SQLite then copy.
 *
 * Let through, and right on a private mapping of a file:
 * - MADV_FREE: fails by itself (EINVAL), since it is for memory without a file only. Callers go on to MADV_DONTNEED.
 * - MADV_REMOVE: fails by itself (EACCES), since the mapping is not shared; the file is not touched.
 * - MADV_WIPEONFORK: fails by itself (EINVAL). Memory mapped after the restore takes it as ever.
 * - MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ and _WRITE, MADV_WILLNEED, MADV_SEQUENTIAL, MADV_RANDOM: keep the content.
 * - MADV_HUGEPAGE, MADV_COLLAPSE: without effect, or fail; the content stays. MADV_MERGEABLE works on written pages.
 * - MADV_DONTFORK, MADV_DONTDUMP: as ever. A core file leaves pages out that were not written since the restore.
 * - mmap over it, munmap, brk: the mapping goes, what comes is memory without a file, and zeros.
 * - mprotect, fork, ptrace, process_vm_writev: a page is copied when it is written, as ever.
 * - msync: succeeds and writes nothing. mlock: copies all of it if it is writable. mincore: tells of the page cache.
 * - userfaultfd: refuses to serve missing pages of it (EINVAL). remap_file_pages: for shared mappings only.
 *
 * Not covered: io_uring can give advice (IORING_OP_MADVISE) past any filter. Docker's profile forbids it since 25.0, and a
 * process that has a ring cannot be dumped.
 */
const FORBIDDEN_ADVICE = { dontneed: 4, dontneedLocked: 24, guardInstall: 102 } as const;
/** Calls that take advice, and which of their arguments it is. */
const ADVISING = [
  { name: 'madvise', index: 2 },
  { name: 'process_madvise', index: 3 },
] as const;
const MREMAP = 'mremap';
const EINVAL = 22;
const ENOMEM = 12;
/** Advice from here on does not exist (Linux 6.18 ends at 103), and all of it is optional. A power of two. */
const ADVICE_END = 128;
/** The kernel looks at the lower half of an argument that is an int; a comparison without a mask at all of it. */
const LOWER_HALF = 0xffff_ffff;

/** The section `linux.seccomp` of a specification, as far as it is looked at here. */
interface Seccomp {
  defaultAction: string;
  architectures?: string[];
  syscalls?: Rule[];
  [key: string]: unknown;
}

interface Rule {
  names: string[];
  action: string;
  errnoRet?: number;
  args?: Comparison[];
  [key: string]: unknown;
}

interface Comparison {
  index: number;
  op: string;
  /** For SCMP_CMP_MASKED_EQ the mask. */
  value: number;
  /** For SCMP_CMP_MASKED_EQ what the masked argument must be. */
  valueTwo?: number;
}

/**
 * A filter that lets everything through. A process of an architecture that a filter does not list is killed, so it lists
 * what the machines that this is for can run; those of the other machine do no harm.
 */
const UNCONFINED: Seccomp = {
  defaultAction: 'SCMP_ACT_ALLOW',
  architectures: ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32', 'SCMP_ARCH_AARCH64', 'SCMP_ARCH_ARM'],
};

/** Whether a specification lets none of what the guard refuses through. */
export function isGuarded(spec: OciSpec): boolean {
  const seccomp = spec.linux.seccomp as Seccomp | undefined;
  if (seccomp === undefined) return false;
  const advice = Object.values(FORBIDDEN_ADVICE).flatMap((value) => [value, value + LOWER_HALF + 1]);
  return (
    !letsThrough(seccomp, MREMAP) &&
    ADVISING.every(({ name, index }) => advice.every((value) => !letsThrough(seccomp, name, { index, value })))
  );
}

/**
 * A specification under which the guard holds; all other calls are decided as before. The one that was given stays as it is,
 * and one that is guarded already is returned as it is.
 *
 * libseccomp drops rules with conditions where another one allows the same call without any, so those that allow the call
 * are cut down to the advice that stays allowed. Several conditions on the same argument would be taken as alternatives by
 * runc; masked comparisons with aligned blocks of numbers say the same with one condition each.
 */
export function guarded(spec: OciSpec): OciSpec {
  if (isGuarded(spec)) return spec;
  const copy = structuredClone(spec);
  const seccomp = (copy.linux.seccomp ?? structuredClone(UNCONFINED)) as Seccomp;
  copy.linux.seccomp = seccomp;
  const denied: Rule[] = [];
  for (const { name, index } of ADVISING) {
    if (!letsThrough(seccomp, name)) continue;
    seccomp.syscalls = rulesOf(seccomp).flatMap((rule) => restricted(rule, name, index));
    for (const advice of Object.values(FORBIDDEN_ADVICE)) {
      denied.push({ names: [name], action: ERRNO, errnoRet: EINVAL, args: [block(index, advice, 1)] });
    }
  }
  if (letsThrough(seccomp, MREMAP)) {
    seccomp.syscalls = rulesOf(seccomp).flatMap((rule) => (permits(rule.action) ? without(rule, MREMAP) : [rule]));
    denied.push({ names: [MREMAP], action: ERRNO, errnoRet: ENOMEM });
  }
  seccomp.syscalls = [...denied, ...rulesOf(seccomp)];
  return copy;
}

const ERRNO = 'SCMP_ACT_ERRNO';

/** Whether the call may go on, or somebody else decides that it does. */
function permits(action: string): boolean {
  return ['SCMP_ACT_ALLOW', 'SCMP_ACT_LOG', 'SCMP_ACT_TRACE', 'SCMP_ACT_NOTIFY'].includes(action);
}

/** Whether a call may get through: with this value of one argument, or at all, whatever the other arguments are. */
function letsThrough(seccomp: Seccomp, name: string, arg?: { index: number; value: number }): boolean {
  const rules = rulesOf(seccomp)
    .filter((rule) => rule.names.includes(name))
    .flatMap((rule) => alternatives(rule).map((args) => ({ permitting: permits(rule.action), args })));
  const may = (args: readonly Comparison[]) =>
    arg === undefined || args.every((one) => one.index !== arg.index || matches(one, arg.value));
  if (rules.some(({ permitting, args }) => permitting && may(args))) return true;
  const always = (args: readonly Comparison[]) => args.every(({ index }) => index === arg?.index) && may(args);
  return permits(seccomp.defaultAction) && !rules.some(({ permitting, args }) => !permitting && always(args));
}

function rulesOf(seccomp: Seccomp): Rule[] {
  return seccomp.syscalls ?? [];
}

/** Conditions that must hold together, for each way in which a rule can match. */
function alternatives({ args = [] }: Rule): Comparison[][] {
  // As runc has it (libcontainer/seccomp, matchCall): an argument named twice makes each condition a rule of its own.
  const repeated = new Set(args.map(({ index }) => index)).size < args.length;
  return repeated ? args.map((one) => [one]) : [args];
}

/** A rule in pieces that together match as before, but for a call's forbidden advice if the rule permits it. */
function restricted(rule: Rule, name: string, index: number): Rule[] {
  if (!permits(rule.action) || !rule.names.includes(name)) return [rule];
  const pieces = alternatives(rule).flatMap((args) => {
    const others = args.filter((one) => one.index !== index);
    const own = args.filter((one) => one.index === index);
    return blocks((advice) => !isForbidden(advice) && own.every((one) => matches(one, advice))).map(
      ({ start, size }): Rule => ({ ...rule, names: [name], args: [...others, block(index, start, size)] }),
    );
  });
  return [...without(rule, name), ...pieces];
}

function isForbidden(advice: number): boolean {
  return Object.values(FORBIDDEN_ADVICE).some((forbidden) => forbidden === advice);
}

function without(rule: Rule, name: string): Rule[] {
  const names = rule.names.filter((other) => other !== name);
  return names.length === 0 ? [] : [{ ...rule, names }];
}

/** Aligned blocks that hold all numbers below {@link ADVICE_END} for which `wanted` is true, and no others. */
function blocks(wanted: (advice: number) => boolean, start = 0, size = ADVICE_END): { start: number; size: number }[] {
  const numbers = Array.from({ length: size }, (_, i) => start + i);
  if (numbers.every(wanted)) return [{ start, size }];
  if (!numbers.some(wanted)) return [];
  const half = size / 2;
  return [...blocks(wanted, start, half), ...blocks(wanted, start + half, half)];
}

/** True for an int argument of an aligned block. */
function block(index: number, start: number, size: number): Comparison {
  return { index, op: 'SCMP_CMP_MASKED_EQ', value: LOWER_HALF + 1 - size, valueTwo: start };
}

/** Whether an argument meets a condition. One of a kind that is not known may. */
function matches({ op, value, valueTwo = 0 }: Comparison, argument: number): boolean {
  switch (op) {
    case 'SCMP_CMP_NE':
      return argument !== value;
    case 'SCMP_CMP_LT':
      return argument < value;
    case 'SCMP_CMP_LE':
      return argument <= value;
    case 'SCMP_CMP_EQ':
      return argument === value;
    case 'SCMP_CMP_GE':
      return argument >= value;
    case 'SCMP_CMP_GT':
      return argument > value;
    case 'SCMP_CMP_MASKED_EQ':
      return (BigInt(argument) & BigInt(value)) === BigInt(valueTwo);
    default:
      return true;
  }
}
