import { type RawHeaders, valuesOf } from './headers.js';

/** A name, an IPv4 address or an IPv6 one in brackets, and a port if any. */
const HOST = /^(?:[\w.~%!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])?(?::\d*)?$/;

/** What {@link requestFault} looks at. */
export interface RequestHead {
  /** "1.0" or "1.1". */
  httpVersion: string;
  /** Target as sent. */
  url: string;
  rawHeaders: RawHeaders;
}

/**
 * Why a request could be understood differently by a server behind us, and so is refused; undefined when it is clear.
 * Node's parser lets through what is refused here: several Host headers, a target that names another host, transfer
 * codings other than chunked, and any transfer coding in HTTP/1.0.
 */
export function requestFault({ httpVersion, url, rawHeaders }: RequestHead): string | undefined {
  const hosts = valuesOf(rawHeaders, 'host');
  const lengths = valuesOf(rawHeaders, 'content-length');
  const codings = valuesOf(rawHeaders, 'transfer-encoding');
  const [host] = hosts;
  if (hosts.length > 1) return 'it has more than one Host header';
  if (host === undefined && httpVersion !== '1.0') return 'it has no Host header';
  if (host !== undefined && !HOST.test(host)) return 'its Host header is malformed';
  if (codings.length > 0 && lengths.length > 0) return 'it has both Content-Length and Transfer-Encoding';
  if (codings.length > 0 && httpVersion === '1.0') return 'it has a Transfer-Encoding, which HTTP/1.0 does not know';
  if (codings.length > 0 && (codings.length > 1 || codings[0]?.toLowerCase() !== 'chunked')) {
    return 'its Transfer-Encoding is not "chunked"';
  }
  if (lengths.length > 1 || !/^\d*$/.test(lengths[0] ?? '')) return 'its Content-Length is malformed';
  return targetOf(url, host) === undefined
    ? 'its target is malformed, or names another host than Host does'
    : undefined;
}

/** The target in the form that servers take: an absolute one loses scheme and host. Undefined: see {@link requestFault}. */
export function targetOf(url: string, host: string | undefined): string | undefined {
  if (url.startsWith('/') || url === '*') return url;
  const absolute = /^http:\/\/([^/?#]*)(.*)$/i.exec(url);
  if (absolute === null || absolute[1]?.toLowerCase() !== host?.toLowerCase()) return undefined;
  const rest = absolute[2] ?? '';
  return rest.startsWith('/') ? rest : `/${rest}`;
}
