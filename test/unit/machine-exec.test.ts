import { describe, expect, it } from 'vitest';
import { run } from '../../control-plane/cli/machine/exec.js';

const options = { timeoutMs: 5_000, errorCode: 'SETUP_FAILED' } as const;

describe('a command on the machine', () => {
  it('gives its output', async () => {
    await expect(run('sh', ['-c', 'echo out; echo err >&2'], options)).resolves.toBe('out\n');
  });

  it('that fails says with which code, and shows its last words', async () => {
    await expect(run('sh', ['-c', 'echo why >&2; printf unfinished >&2; exit 3'], options)).rejects.toMatchObject({
      code: 'SETUP_FAILED',
      message: expect.stringContaining('failed with code 3'),
      outputTail: ['why', 'unfinished'],
    });
  });

  it('that is not installed is named', async () => {
    await expect(run('initless-no-such-command', [], options)).rejects.toMatchObject({
      code: 'SETUP_FAILED',
      message: "'initless-no-such-command' is not installed",
    });
  });

  it('that takes too long is ended, and what was pending is named', async () => {
    const started = Date.now();
    await expect(run('sleep', ['60'], { ...options, timeoutMs: 100 })).rejects.toMatchObject({
      code: 'DEADLINE',
      message: expect.stringContaining("'sleep 60' to end"),
    });
    expect(Date.now() - started).toBeLessThan(3_000);
  });

  it('is ended by its caller, also when a child of it keeps its output open', async () => {
    const started = Date.now();
    const why = new Error('enough');
    const controller = new AbortController();
    setTimeout(() => controller.abort(why), 100);
    await expect(run('sh', ['-c', 'sleep 7 & sleep 8'], { ...options, signal: controller.signal })).rejects.toBe(why);
    expect(Date.now() - started).toBeLessThan(5_000);
  });

  it('is not started once its caller has given up', async () => {
    await expect(run('true', [], { ...options, signal: AbortSignal.abort(new Error('late')) })).rejects.toThrow('late');
  });
});
