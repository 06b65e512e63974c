import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { usableNameservers } from '../../control-plane/cli/machine/nameservers.js';
import { chooseSubnet, gatewayOf, SUBNETS } from '../../control-plane/cli/machine/subnet.js';

describe('the choice of a subnet', () => {
  it('takes the first candidate when nothing is in the way', () => {
    expect(chooseSubnet(SUBNETS, ['default', '127.0.0.0/8', 'fe80::/64'])).toBe('10.77.0.0/24');
  });

  it('passes over what a route covers, wider, narrower or equal', () => {
    expect(chooseSubnet(['10.1.0.0/24', '10.2.0.0/24'], ['10.1.0.0/16'])).toBe('10.2.0.0/24');
    expect(chooseSubnet(['10.1.0.0/24', '10.2.0.0/24'], ['10.1.0.128/25'])).toBe('10.2.0.0/24');
    expect(chooseSubnet(['10.1.0.0/24', '10.2.0.0/24'], ['10.1.0.7'])).toBe('10.2.0.0/24');
    expect(chooseSubnet(['10.1.0.0/24', '10.2.0.0/24'], ['10.1.0.0/24'])).toBe('10.2.0.0/24');
  });

  it('understands a network given by an address inside it', () => {
    expect(chooseSubnet(['10.1.0.0/24', '10.2.0.0/24'], ['10.1.0.77/24'])).toBe('10.2.0.0/24');
  });

  it('says when none is left', () => {
    expect(chooseSubnet(SUBNETS, ['10.0.0.0/8', '192.168.0.0/16'])).toBeUndefined();
    expect(chooseSubnet(SUBNETS, ['0.0.0.0/0'])).toBeUndefined();
  });

  it('never gives a subnet that holds an address in use', () => {
    const octet = fc.integer({ min: 0, max: 255 });
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.integer({ min: 0, max: 70 }), octet), { maxLength: 100 }), (used) => {
        const chosen = chooseSubnet(
          SUBNETS,
          used.map(([third, last]) => `10.77.${third}.${last}`),
        );
        return chosen !== undefined && !used.some(([third]) => chosen === `10.77.${third}.0/24`);
      }),
    );
  });

  it('offers only networks that do not overlap each other', () => {
    SUBNETS.forEach((subnet, index) => {
      expect(chooseSubnet([subnet], SUBNETS.toSpliced(index, 1))).toBe(subnet);
    });
  });

  it('the gateway is the first address', () => {
    expect(gatewayOf('10.77.3.0/24')).toBe('10.77.3.1');
    expect(gatewayOf('192.168.224.0/24')).toBe('192.168.224.1');
    expect(() => gatewayOf('fd00::/64')).toThrow('is no IPv4 network');
  });
});

describe('nameservers for containers', () => {
  it('are those of resolv.conf, in order and once', () => {
    const text =
      '# made by hand\nnameserver 10.0.0.53\n nameserver\t9.9.9.9 # second\nnameserver 10.0.0.53\nsearch a.b\n';
    expect(usableNameservers(text)).toEqual(['10.0.0.53', '9.9.9.9']);
  });

  it('are not those that only the machine itself reaches, nor IPv6 ones', () => {
    expect(usableNameservers('nameserver 127.0.0.53\nnameserver ::1\nnameserver fd00::53\n')).toEqual([]);
  });

  it('a commented line is none', () => {
    expect(usableNameservers('#nameserver 10.0.0.1\n;nameserver 10.0.0.2\n')).toEqual([]);
  });
});
