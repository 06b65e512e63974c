import { describe, expect, it } from 'vitest';
import { guarded, isGuarded } from '../../agent/memory/guard.js';
import type { OciSpec } from '../../agent/runtime/spec.js';

const EINVAL = 22;
const ENOMEM = 12;
const FORBIDDEN = [4, 24, 102];
/** All advice that Linux knows, and some that it does not. */
const ALLOWED = Array.from({ length: 128 }, (_, advice) => advice).filter((advice) => !FORBIDDEN.includes(advice));

interface Arg {
  index: number;
  op: string;
  value: number;
  valueTwo?: number;
}

interface Rule {
  names: string[];
  action: string;
  errnoRet?: number;
  args?: Arg[];
}

function specWith(seccomp?: { defaultAction: string; syscalls?: Rule[]; [key: string]: unknown }): OciSpec {
  return {
    process: { args: ['app'], env: [] },
    root: { path: '/r' },
    mounts: [],
    linux: { namespaces: [], ...(seccomp && { seccomp }) },
  };
}

const DOCKER = {
  defaultAction: 'SCMP_ACT_ERRNO',
  defaultErrnoRet: 1,
  architectures: ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32'],
  syscalls: [
    { names: ['lstat', 'madvise', 'mlock', 'mremap', 'munmap'], action: 'SCMP_ACT_ALLOW' },
    { names: ['socket'], action: 'SCMP_ACT_ALLOW', args: [{ index: 0, value: 40, op: 'SCMP_CMP_NE' }] },
    { names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: 38 },
  ],
};

/**
 * What libseccomp makes of a specification for one call, as runc gives it the rules: rules that say what the default says
 * are left out, an argument named twice makes conditions alternatives, and a rule without conditions drowns those with some.
 */
function outcome(spec: OciSpec, name: string, args: readonly number[] = []): string {
  const { defaultAction, syscalls = [] } = spec.linux.seccomp as { defaultAction: string; syscalls?: Rule[] };
  const isDefault = ({ action, errnoRet = 1 }: Rule) =>
    action === defaultAction && (action !== 'SCMP_ACT_ERRNO' || errnoRet === 1);
  const rules = syscalls
    .filter((rule) => rule.names.includes(name) && !isDefault(rule))
    .flatMap((rule) => {
      const { args = [] } = rule;
      const twice = new Set(args.map(({ index }) => index)).size < args.length;
      return (twice ? args.map((arg) => [arg]) : [args]).map((conditions) => ({ rule, conditions }));
    });
  const drowning = rules.find(({ conditions }) => conditions.length === 0);
  const right = drowning ? [drowning] : rules.filter(({ conditions }) => conditions.every((one) => meets(one, args)));
  const outcomes = new Set(right.map(({ rule }) => shown(rule)));
  if (outcomes.size > 1) throw new Error(`${name}(${args}) is both ${[...outcomes].join(' and ')}`);
  return [...outcomes][0] ?? defaultAction;
}

function shown({ action, errnoRet }: Rule): string {
  return errnoRet === undefined ? action : `${action} ${errnoRet}`;
}

function meets({ index, op, value, valueTwo = 0 }: Arg, args: readonly number[]): boolean {
  const argument = args[index] ?? 0;
  if (op === 'SCMP_CMP_MASKED_EQ') return (BigInt(argument) & BigInt(value)) === BigInt(valueTwo);
  if (op === 'SCMP_CMP_EQ') return argument === value;
  if (op === 'SCMP_CMP_NE') return argument !== value;
  if (op === 'SCMP_CMP_LT') return argument < value;
  if (op === 'SCMP_CMP_GE') return argument >= value;
  throw new Error(`no ${op} in these tests`);
}

const madvise = (advice: number): [string, number[]] => ['madvise', [4096, 4096, advice]];
const processMadvise = (advice: number): [string, number[]] => ['process_madvise', [3, 4096, 1, advice, 0]];

describe('the guard', () => {
  it('answers advice that would bring back old content with EINVAL, and allows all other advice, in Docker’s profile', () => {
    const spec = guarded(specWith(DOCKER));
    for (const advice of FORBIDDEN) {
      expect(outcome(spec, ...madvise(advice))).toBe(`SCMP_ACT_ERRNO ${EINVAL}`);
    }
    for (const advice of ALLOWED) expect(outcome(spec, ...madvise(advice)), `${advice}`).toBe('SCMP_ACT_ALLOW');
  });

  it('looks at the half of the argument that the kernel looks at', () => {
    const spec = guarded(specWith(DOCKER));
    expect(outcome(spec, ...madvise(2 ** 32 + 4))).toBe(`SCMP_ACT_ERRNO ${EINVAL}`);
    expect(outcome(spec, ...madvise(2 ** 32 + 5))).toBe('SCMP_ACT_ALLOW');
  });

  it('answers mremap with ENOMEM', () => {
    expect(outcome(guarded(specWith(DOCKER)), 'mremap', [4096, 4096, 8192, 1])).toBe(`SCMP_ACT_ERRNO ${ENOMEM}`);
  });

  it('decides every other call as before', () => {
    const spec = guarded(specWith(DOCKER));
    for (const name of ['lstat', 'mlock', 'munmap', 'reboot']) {
      expect(outcome(spec, name), name).toBe(outcome(specWith(DOCKER), name));
    }
    expect(outcome(spec, 'socket', [40])).toBe('SCMP_ACT_ERRNO');
    expect(outcome(spec, 'socket', [2])).toBe('SCMP_ACT_ALLOW');
    expect(outcome(spec, 'clone3')).toBe('SCMP_ACT_ERRNO 38');
    expect(spec.linux.seccomp).toMatchObject({ defaultErrnoRet: 1, architectures: DOCKER.architectures });
  });

  it('does not allow process_madvise where it was not allowed', () => {
    expect(outcome(guarded(specWith(DOCKER)), ...processMadvise(20))).toBe('SCMP_ACT_ERRNO');
  });

  it('holds for process_madvise where the profile allows it', () => {
    const allowing = [...DOCKER.syscalls, { names: ['kcmp', 'process_madvise'], action: 'SCMP_ACT_ALLOW' }];
    const spec = guarded(specWith({ ...DOCKER, syscalls: allowing }));
    for (const advice of FORBIDDEN) {
      expect(outcome(spec, ...processMadvise(advice))).toBe(`SCMP_ACT_ERRNO ${EINVAL}`);
    }
    expect(outcome(spec, ...processMadvise(20))).toBe('SCMP_ACT_ALLOW');
    expect(outcome(spec, 'kcmp')).toBe('SCMP_ACT_ALLOW');
  });

  it.each([
    ['without a seccomp section', undefined],
    ['with a profile that allows by default', { defaultAction: 'SCMP_ACT_ALLOW' }],
    ['with a profile that allows and logs', { defaultAction: 'SCMP_ACT_LOG', syscalls: [] }],
    [
      'with a profile that allows by default and says so again',
      { defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ names: ['madvise', 'mremap'], action: 'SCMP_ACT_ALLOW' }] },
    ],
  ])('holds %s, and lets everything else through', (_, seccomp) => {
    const spec = guarded(specWith(seccomp));
    const through = seccomp?.defaultAction ?? 'SCMP_ACT_ALLOW';
    for (const advice of FORBIDDEN) {
      expect(outcome(spec, ...madvise(advice))).toBe(`SCMP_ACT_ERRNO ${EINVAL}`);
      expect(outcome(spec, ...processMadvise(advice))).toBe(`SCMP_ACT_ERRNO ${EINVAL}`);
    }
    for (const advice of ALLOWED) expect(outcome(spec, ...madvise(advice)), `${advice}`).toBe(through);
    expect(outcome(spec, ...madvise(2 ** 32 - 1))).toBe(through);
    expect(outcome(spec, 'mremap')).toBe(`SCMP_ACT_ERRNO ${ENOMEM}`);
    expect(outcome(spec, 'reboot')).toBe(through);
    expect(isGuarded(spec)).toBe(true);
  });

  it('lists architectures where it makes a filter, since processes of all others would be killed', () => {
    const { seccomp } = guarded(specWith()).linux as { seccomp?: { architectures: string[] } };
    expect(seccomp?.architectures).toEqual(expect.arrayContaining(['SCMP_ARCH_X86', 'SCMP_ARCH_AARCH64']));
  });

  it('keeps the conditions of a profile that allows only some advice', () => {
    const allow = (...args: Arg[]): Rule => ({ names: ['madvise'], action: 'SCMP_ACT_ALLOW', args });
    const spec = guarded(
      specWith({
        defaultAction: 'SCMP_ACT_ERRNO',
        syscalls: [
          // Two conditions on one argument: either is enough.
          allow({ index: 2, op: 'SCMP_CMP_LT', value: 6 }, { index: 2, op: 'SCMP_CMP_EQ', value: 14 }),
          allow({ index: 0, op: 'SCMP_CMP_EQ', value: 77 }, { index: 2, op: 'SCMP_CMP_GE', value: 20 }),
        ],
      }),
    );
    for (const advice of FORBIDDEN) {
      expect(outcome(spec, 'madvise', [77, 0, advice])).toBe(`SCMP_ACT_ERRNO ${EINVAL}`);
    }
    for (const advice of ALLOWED) {
      const small = advice < 6 || advice === 14;
      expect(outcome(spec, 'madvise', [5, 0, advice])).toBe(small ? 'SCMP_ACT_ALLOW' : 'SCMP_ACT_ERRNO');
      expect(outcome(spec, 'madvise', [77, 0, advice])).toBe(
        small || advice >= 20 ? 'SCMP_ACT_ALLOW' : 'SCMP_ACT_ERRNO',
      );
    }
  });

  it('leaves the specification that it was given as it is, and a guarded one too', () => {
    const given = specWith(DOCKER);
    const before = structuredClone(given);
    const once = guarded(given);
    expect(given).toEqual(before);
    expect(guarded(once)).toBe(once);
  });
});

describe('whether a specification is guarded', () => {
  it('is denied of one without a filter, of Docker’s, and of one in which a rule drowns the guard', () => {
    expect(isGuarded(specWith())).toBe(false);
    expect(isGuarded(specWith(DOCKER))).toBe(false);
    const spec = structuredClone(guarded(specWith(DOCKER)));
    (spec.linux.seccomp as { syscalls: Rule[] }).syscalls.push({ names: ['madvise'], action: 'SCMP_ACT_ALLOW' });
    expect(isGuarded(spec)).toBe(false);
  });

  it.each(['madvise', 'mremap'])('is denied of one that lacks the rule for %s', (name) => {
    const spec = structuredClone(guarded(specWith({ defaultAction: 'SCMP_ACT_ALLOW' })));
    const seccomp = spec.linux.seccomp as { syscalls: Rule[] };
    seccomp.syscalls = seccomp.syscalls.filter((rule) => !rule.names.includes(name));
    expect(isGuarded(spec)).toBe(false);
  });

  it('is denied of one that compares the whole argument, or hands the call to somebody else', () => {
    const refuse = (name: string, args: Arg[]): Rule => ({ names: [name], action: 'SCMP_ACT_ERRNO', args });
    const whole = (index: number, value: number): Arg => ({ index, op: 'SCMP_CMP_EQ', value });
    const syscalls = [
      ...FORBIDDEN.flatMap((advice) => [
        refuse('madvise', [whole(2, advice)]),
        refuse('process_madvise', [whole(3, advice)]),
      ]),
      refuse('mremap', []),
    ];
    expect(isGuarded(specWith({ defaultAction: 'SCMP_ACT_ALLOW', syscalls }))).toBe(false);
    const asking = [{ names: ['madvise'], action: 'SCMP_ACT_NOTIFY' }];
    expect(isGuarded(specWith({ defaultAction: 'SCMP_ACT_ERRNO', syscalls: asking }))).toBe(false);
  });

  it('is granted to one that allows none of these calls', () => {
    expect(isGuarded(specWith({ defaultAction: 'SCMP_ACT_ERRNO', syscalls: [] }))).toBe(true);
  });
});
