import { chmod, lchown, mkdir, readdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { type TransferPart, TransferPartKind } from '../../proto/gen/initless/v1/transfer.js';
import type { Entry, Manifest } from '../checkpoint/manifest.js';
import { run } from '../runtime/exec.js';
import { inTree, unpackTree } from './tree-archive.js';

/** Room in an archive for what is not content: headers, names, attributes, padding. Bytes, for each entry and for all. */
const ENTRY_ROOM = 16 * 1024;
const ARCHIVE_ROOM = 1024 * 1024;
/** Bound on copying one file to another disk. */
const MOVE_TIMEOUT_MS = 300_000;

/** A part that has come, and its file. */
export interface Staged {
  part: TransferPart;
  file: string;
}

/** The part for the files that go one by one, and the one for the rest. */
const { TRANSFER_PART_KIND_FILE: FILE, TRANSFER_PART_KIND_TREE: TREE } = TransferPartKind;

/**
 * What is wrong with a checkpoint as another host describes it, before any of it is fetched, as a phrase: entries that would
 * lie outside its folder, parts that are not what its manifest says. Pure.
 */
export function faultOf({ entries }: Manifest, parts: readonly TransferPart[]): string | undefined {
  const folders = new Set(entries.filter(({ type }) => type === 'directory').map((entry) => entry.path));
  const seen = new Set<string>();
  for (const { path: name } of entries) {
    const parent = path.posix.dirname(name);
    const inside = name !== '' && !name.startsWith('/') && path.posix.normalize(name) === name;
    if (!inside || name.split('/').includes('..') || name.includes('\0')) return `its entry ${name} leads outside`;
    if (parent !== '.' && !folders.has(parent)) return `its entry ${name} is in no folder`;
    if (seen.has(name)) return `its entry ${name} is there twice`;
    seen.add(name);
  }
  const files = new Map(filesOf(entries).map((entry) => [entry.path, entry]));
  for (const { kind, name, size } of parts) {
    if (kind === FILE && files.get(name)?.size !== size) return `its file ${name} is not the one of the manifest`;
    if (kind === FILE) files.delete(name);
    if (kind === TREE && size > mostOfTree(entries)) return `its archive has ${size} bytes, more than its entries`;
  }
  const [missing] = files.keys();
  if (missing !== undefined) return `its file ${missing} is missing`;
  return parts.filter(({ kind }) => kind === TREE).length === 1 ? undefined : 'it has no archive, or several';
}

function mostOfTree(entries: readonly Entry[]): number {
  return entries.filter(inTree).reduce((sum, { size = 0 }) => sum + size + ENTRY_ROOM, ARCHIVE_ROOM);
}

function filesOf(entries: readonly Entry[]): Entry[] {
  return entries.filter((entry) => entry.type === 'file' && !inTree(entry));
}

/**
 * Puts a checkpoint together in a folder. The parts' files are used up. Errors: BAD_ARCHIVE for an archive with anything that
 * is not in the manifest; DISK_FULL, INTERNAL, DEADLINE, the signal's reason.
 */
export async function assemble(
  dir: string,
  { entries }: Manifest,
  staged: readonly Staged[],
  signal: AbortSignal,
): Promise<void> {
  // The folders that one begins with are the copy's own to have, or not.
  for (const name of await readdir(dir)) await rm(path.join(dir, name), { recursive: true });
  // Parents come before what is in them: faultOf has made sure that there are such, and a manifest is sorted.
  const folders = entries.filter((entry) => entry.type === 'directory' && !inTree(entry));
  for (const { path: name } of folders) await mkdir(path.join(dir, name), { recursive: true, mode: 0o700 });
  for (const { part, file } of staged) {
    signal.throwIfAborted();
    if (part.kind === FILE) await move(file, path.join(dir, part.name), signal);
    if (part.kind === TREE) await unpackTree(file, dir, entries, signal);
  }
  for (const entry of [...filesOf(entries), ...folders]) {
    await lchown(path.join(dir, entry.path), entry.uid, entry.gid);
    await chmod(path.join(dir, entry.path), entry.mode);
  }
}

/** Renames a file, or copies it, without its holes, where `to` is on another file system. */
async function move(from: string, to: string, signal: AbortSignal): Promise<void> {
  try {
    await rename(from, to);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EXDEV') throw error;
    await run('cp', ['--sparse=always', from, to], { timeoutMs: MOVE_TIMEOUT_MS, label: `moving to ${to}`, signal });
  }
}
