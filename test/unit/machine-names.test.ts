import { describe, expect, it } from 'vitest';
import { checkName, hostNames, stateDir } from '../../control-plane/cli/machine/names.js';

describe('names on the machine', () => {
  it.each(['a', 'host1', 'my-host', '0', 'a'.repeat(32)])('%j can be a name', (name) => {
    expect(checkName('host', name)).toBe(name);
  });

  it.each([
    '',
    '-a',
    'a-',
    'A',
    'a_b',
    'a.b',
    '..',
    'a/b',
    'a\0b',
    'a\nb',
    'hôte',
    'a'.repeat(33),
    'a'.repeat(4096),
    ' a',
  ])('%j is refused before it reaches a path or a command', (name) => {
    expect(() => checkName('host', name)).toThrow(expect.objectContaining({ code: 'BAD_NAME' }));
    expect(() => hostNames('initless', name)).toThrow(expect.objectContaining({ code: 'BAD_NAME' }));
    expect(() => stateDir(name)).toThrow(expect.objectContaining({ code: 'BAD_NAME' }));
  });

  it('an overlong name is cut in the message', () => {
    expect(() => checkName('host', 'x'.repeat(5000))).toThrow(/^"x{64}\.\.\."/);
  });

  it('a project cannot take the folders that belong to no project', () => {
    for (const name of ['engine', 'tmp']) {
      expect(() => stateDir(name)).toThrow(expect.objectContaining({ code: 'BAD_NAME' }));
      expect(checkName('host', name)).toBe(name);
    }
  });

  it('two projects with hosts of the same name share nothing', () => {
    const a = Object.values(hostNames('initless', 'host1'));
    const b = Object.values(hostNames('initless-test', 'host1'));
    expect(a.filter((name) => b.includes(name))).toEqual([]);
  });
});
