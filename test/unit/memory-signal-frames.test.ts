import { describe, expect, it } from 'vitest';
import { frameOf, stackPointer } from '../../agent/memory/signal-frames.js';

const alternate = { start: 0x1000n, end: 0x9000n };
const THREAD = { pid: 1, tid: 2, sp: 0x80000n, redZone: 128, alternate };

describe('the frame of a signal that came during a restore', () => {
  it('is not there where the stack is where it was', () => {
    expect(frameOf(THREAD, THREAD.sp)).toBeUndefined();
  });

  it('ends below what the thread itself may have below its stack pointer', () => {
    const address = THREAD.sp - 0x1000n;
    expect(frameOf(THREAD, address)).toEqual({ pid: 1, address, length: 0x1000 - 128 });
    expect(frameOf({ ...THREAD, redZone: 0 }, address)).toMatchObject({ length: 0x1000 });
  });

  it('ends with the stack for handlers where it lies on that', () => {
    expect(frameOf(THREAD, 0x8000n)).toEqual({ pid: 1, address: 0x8000n, length: 0x1000 });
  });

  it('ends at the stack pointer of a handler that was dumped', () => {
    expect(frameOf({ ...THREAD, sp: 0x8800n }, 0x8000n)).toMatchObject({ address: 0x8000n, length: 0x800 - 128 });
  });

  it('excuses nothing where the stack is somewhere else', () => {
    expect(frameOf(THREAD, THREAD.sp + 8n)).toBeUndefined();
    expect(frameOf(THREAD, THREAD.sp - 8n)).toBeUndefined();
    expect(frameOf(THREAD, THREAD.sp - 0x20000n)).toBeUndefined();
  });
});

describe('the stack pointer of a stopped thread', () => {
  it('is read whether or not it is in a system call', () => {
    expect(stackPointer('-1 0x7ffd10 0x7f00\n')).toBe(0x7ffd10n);
    expect(stackPointer('23 0x1 0x2 0x3 0x4 0x5 0x6 0x7ffd10 0x7f00\n')).toBe(0x7ffd10n);
    expect(stackPointer('running\n')).toBeUndefined();
  });
});
