import { describe, expect, it } from 'vitest';
import { incompatibility } from '../../agent/runtime/criu.js';
import { matches } from '../../agent/runtime/health.js';
import { parseTcp, whyUnreachable } from '../../agent/runtime/process.js';
import { hostRules, INNER_ADDRESS, outerAddress, sandboxRules } from '../../agent/runtime/sandbox.js';
import { forbiddenNetworks } from '../../agent/settings.js';
import { Fingerprint } from '../../proto/gen/initless/v1/types.js';

describe('what counts as healthy', () => {
  const check = (wanted: string) => ({ path: '/', wanted, timeoutMs: 1000 });

  it('is any 2xx answer when nothing is wanted', () => {
    expect(matches(check(''), 204, '')).toBe(true);
    expect(matches(check(''), 302, '')).toBe(false);
  });

  it('compares a wanted object as JSON, whatever its spaces and the order of its keys', () => {
    expect(matches(check('{"a":1,"b":[2]}'), 200, ' { "b": [2],\n "a": 1 }\n')).toBe(true);
    expect(matches(check('{"a":1}'), 200, '{"a":1,"b":2}')).toBe(false);
    expect(matches(check('{"a":1}'), 200, 'not JSON, {"a":1}')).toBe(false);
  });

  it('finds a wanted text within the body', () => {
    expect(matches(check('9999'), 200, '{"value": 9999}')).toBe(true);
    expect(matches(check('9999'), 500, '9999')).toBe(false);
    expect(matches(check('ok'), 200, 'starting')).toBe(false);
  });
});

describe('where a process listens', () => {
  const header = '  sl  local_address rem_address   st\n';

  it('is read from the kernel table, listening sockets only', () => {
    const table = `${header}   0: 0100007F:1F90 00000000:0000 0A 0\n   1: 0100007F:1F91 0100007F:9999 01 0\n`;
    expect(parseTcp(table)).toEqual([{ address: '127.0.0.1', port: 8080 }]);
  });

  it('is read for IPv6 too, mapped addresses as IPv4', () => {
    const any = `${'0'.repeat(32)}`;
    const mapped = '0000000000000000FFFF00000100007F';
    expect(parseTcp(`${header} 0: ${any}:0050 ${any}:0000 0A\n 1: ${mapped}:0051 ${any}:0000 0A\n`)).toEqual([
      { address: '::', port: 80 },
      { address: '127.0.0.1', port: 81 },
    ]);
  });

  it('explains a listener on loopback, another port, or none', () => {
    expect(whyUnreachable([{ address: '127.0.0.1', port: 80 }], 80)?.nextStep).toBe('make it listen on 0.0.0.0:80');
    expect(whyUnreachable([{ address: '0.0.0.0', port: 9090 }], 80)?.what).toContain('listens on 0.0.0.0:9090');
    expect(whyUnreachable([], 80)?.what).toContain('nothing listens');
    expect(whyUnreachable([{ address: INNER_ADDRESS, port: 80 }], 80)).toBeUndefined();
    expect(whyUnreachable([{ address: '::', port: 80 }], 80)).toBeUndefined();
  });
});

describe('sandboxes', () => {
  it('have distinct outer addresses, none of them a network or broadcast address of the /16', () => {
    const addresses = new Set(Array.from({ length: 5_000 }, (_, index) => outerAddress(index)));
    expect(addresses.size).toBe(5_000);
    expect(addresses.has('10.200.0.0')).toBe(false);
    expect(outerAddress(255)).toBe('10.200.1.0');
  });

  it('translate between their outer address and the one that all have inside', () => {
    expect(sandboxRules(4)).toContain(`ip daddr 10.200.0.5 notrack ip daddr set ${INNER_ADDRESS}`);
    expect(sandboxRules(4)).toContain(`ip saddr ${INNER_ADDRESS} ip saddr set 10.200.0.5`);
  });

  it('reach neither each other nor what is forbidden', () => {
    const rules = hostRules({ hostAddress: '172.30.0.2', forbidden: ['172.30.0.1'], ports: { first: 1, last: 2 } });
    expect(rules).toContain('ip daddr { 10.200.0.0/16, 10.201.0.0/30, 172.30.0.1 } drop');
    expect(rules).toMatch(/iifname "il\*" oifname "il\*" drop/);
    expect(rules).toMatch(/chain input[^}]*iifname "il\*" drop/);
  });
});

describe('what instances must not reach', () => {
  it('is the widest of the networks that are named, and only addresses', () => {
    expect(forbiddenNetworks(['10.77.1.2', '10.77.1.1', '10.77.1.0/24', '', 'localhost'])).toEqual(['10.77.1.0/24']);
    expect(forbiddenNetworks(['10.77.1.2', '10.77.1.2'])).toEqual(['10.77.1.2']);
  });
});

describe('whether a checkpoint fits a machine', () => {
  const made = Fingerprint.fromPartial({ kernel: '6.1', criu: '4.2.1', arch: 'x86_64', cpuFlags: ['avx', 'sse'] });

  it('does on the machine it was made on, and on one whose CPU has more', () => {
    expect(incompatibility(made, made)).toBeUndefined();
    expect(incompatibility(made, { ...made, cpuFlags: ['avx', 'avx2', 'sse'] })).toBeUndefined();
  });

  it('does not with another kernel, CRIU or architecture, or with fewer CPU features, and says which', () => {
    expect(incompatibility(made, { ...made, kernel: '6.2' })).toContain('kernel 6.1');
    expect(incompatibility(made, { ...made, criu: '4.1' })).toContain('CRIU 4.2.1');
    expect(incompatibility(made, { ...made, arch: 'aarch64' })).toContain('x86_64');
    expect(incompatibility(made, { ...made, cpuFlags: ['sse'] })).toContain('avx');
  });
});
