import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { chooseMode, type DumpFacts, mayBeMapped, modesToTry } from '../../agent/checkpoint/modes.js';
import { MemoryMode, MemoryTrial, Problem } from '../../proto/gen/initless/v1/types.js';

const { MEMORY_MODE_UNSPECIFIED: AUTO, MEMORY_MODE_MAPPED: MAPPED, MEMORY_MODE_COPIED: COPIED } = MemoryMode;
const LAZY = MemoryMode.MEMORY_MODE_LAZY;
const MB = 1_000_000;
const GUARDED = { guard: 'with', reason: 'it starts under the guard' } as const;
const NEVER = { guard: 'never-mapped', reason: 'V8 and jemalloc' } as const;

const right = (mode: MemoryMode, firstAnswerMs: number) => MemoryTrial.fromPartial({ mode, firstAnswerMs });
const wrong = (mode: MemoryMode) =>
  MemoryTrial.fromPartial({
    mode,
    problem: Problem.fromPartial({ code: 'RESTORE_FAILED', message: 'page 7 differs' }),
  });
const facts = (more: Partial<DumpFacts>): DumpFacts => ({
  ...{ wanted: AUTO, verdict: GUARDED, bytes: 150 * MB, mapped: 149 * MB },
  ...more,
});

describe('the modes that are tried', () => {
  it.each([
    ['auto', facts({}), [MAPPED, COPIED]],
    ['auto, nothing to map', facts({ mapped: undefined }), [COPIED]],
    ['auto, large and not to be mapped', facts({ mapped: undefined, bytes: 900 * MB }), [LAZY, COPIED]],
    ['mapped', facts({ wanted: MAPPED }), [MAPPED, COPIED]],
    ['mapped, large and not to be mapped', facts({ wanted: MAPPED, mapped: undefined, bytes: 900 * MB }), [COPIED]],
    ['copied', facts({ wanted: COPIED }), [COPIED]],
    ['lazy', facts({ wanted: LAZY }), [LAZY, COPIED]],
  ])('%s', (_, given, modes) => expect(modesToTry(given)).toEqual(modes));

  it('have the guard on from the start where memory may be mapped', () => {
    expect([AUTO, MAPPED, COPIED, LAZY].map(mayBeMapped)).toEqual([true, true, false, false]);
  });
});

describe('the mode that is taken', () => {
  it('is mapped where that is right, also when copying was a little sooner', () => {
    const choice = chooseMode(facts({}), [right(MAPPED, 110), right(COPIED, 60)]);
    expect(choice).toEqual({ mode: MAPPED, reason: '149 MB of 150 MB are mapped; it starts under the guard' });
  });

  it('is copied where little could be mapped and copying answers sooner', () => {
    const small = facts({ bytes: 2 * MB, mapped: MB });
    expect(chooseMode(small, [right(MAPPED, 60), right(COPIED, 40)])?.mode).toBe(COPIED);
    expect(chooseMode(small, [right(MAPPED, 45), right(COPIED, 40)])?.mode).toBe(MAPPED);
  });

  it('is copied where mapped memory was wrong, and says why', () => {
    expect(chooseMode(facts({}), [wrong(MAPPED), right(COPIED, 200)])).toEqual({
      mode: COPIED,
      reason: 'the trial of mapped memory failed: page 7 differs',
    });
    expect(chooseMode(facts({ wanted: MAPPED }), [wrong(MAPPED), right(COPIED, 200)])?.reason).toMatch(
      /^memory: mapped is configured, but the trial of mapped memory failed/,
    );
    expect(chooseMode(facts({ verdict: NEVER, mapped: undefined }), [right(COPIED, 9)])?.reason).toBe(
      'it is never mapped: V8 and jemalloc',
    );
  });

  it('is lazy where nothing is mapped and copying takes longer', () => {
    const large = facts({ verdict: NEVER, bytes: 900 * MB, mapped: undefined });
    expect(chooseMode(large, [right(LAZY, 300), right(COPIED, 900)])?.mode).toBe(LAZY);
    expect(chooseMode(large, [right(LAZY, 300), right(COPIED, 320)])?.mode).toBe(COPIED);
    expect(chooseMode(large, [wrong(LAZY), right(COPIED, 900)])?.mode).toBe(COPIED);
  });

  it('is the configured one whenever that is right', () => {
    for (const mode of [MAPPED, LAZY, COPIED]) {
      expect(chooseMode(facts({ wanted: mode }), [right(mode, 900), right(COPIED, 1)])?.mode).toBe(mode);
    }
    expect(chooseMode(facts({ wanted: LAZY }), [wrong(LAZY), right(COPIED, 1)])?.reason).toBe(
      'memory: lazy is configured, but its trial failed: page 7 differs',
    );
  });

  it('is never one whose trial was wrong', () => {
    const trial = fc.tuple(fc.constantFrom(MAPPED, COPIED, LAZY), fc.boolean(), fc.integer({ min: 1, max: 5000 }));
    const given = fc.record({
      wanted: fc.constantFrom(AUTO, MAPPED, COPIED, LAZY),
      verdict: fc.constantFrom(undefined, GUARDED, NEVER),
      bytes: fc.integer({ min: 1, max: 2 ** 31 }),
      mapped: fc.option(fc.integer({ min: 1, max: 2 ** 31 }), { nil: undefined }),
    });
    fc.assert(
      fc.property(given, fc.uniqueArray(trial, { selector: ([mode]) => mode }), (dump, tried) => {
        const choice = chooseMode(
          dump,
          tried.map(([mode, good, ms]) => (good ? right(mode, ms) : wrong(mode))),
        );
        const good = tried.filter(([, good]) => good).map(([mode]) => mode);
        if (choice) expect(good).toContain(choice.mode);
        else expect(good).not.toContain(COPIED);
      }),
    );
  });
});
