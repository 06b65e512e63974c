import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';

const ROOT = path.resolve(import.meta.dirname, '../..');
const PARTS = ['control-plane', 'agent', 'gateway'];

/** Files whose decisions must not depend on anything but their arguments. */
const PURE = [
  'agent/instance/lifecycle.ts',
  'agent/instance/sandbox-ledger.ts',
  'agent/instance/sandbox-policy.ts',
  'agent/runtime/sandbox.ts',
  'agent/runtime/sandbox-look.ts',
  'agent/memory/edit.ts',
  'agent/memory/elf.ts',
  'agent/memory/guard.ts',
  'agent/memory/image-file.ts',
  'agent/memory/mapping.ts',
  'agent/memory/model.ts',
  'agent/memory/stretches.ts',
  'gateway/admission.ts',
  'gateway/capacity.ts',
  'gateway/choice.ts',
  'gateway/table.ts',
  ...sources('control-plane/core'),
];

/** What has an effect, or depends on when and where it is called. */
const EFFECTS =
  /^(node:(fs|net|http|https|child_process|os|dgram|dns|tls|worker_threads|cluster|readline|timers)|dockerode|pino|classic-level|chokidar|@grpc|nice-grpc$)/;

function sources(folder: string): string[] {
  return readdirSync(path.join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .map((name) => path.join(folder, name));
}

function importsOf(file: string): string[] {
  const text = readFileSync(path.join(ROOT, file), 'utf8');
  return [...text.matchAll(/(?:from|import\()\s*'([^']+)'/g)].map((match) => match[1] as string);
}

describe('the structure of the code', () => {
  it.each(PARTS)('lets %s import proto and itself, never another part', (part) => {
    for (const file of sources(part)) {
      for (const name of importsOf(file).filter((found) => found.startsWith('.'))) {
        const top = path.normalize(path.join(path.dirname(file), name)).split('/')[0];
        expect(['proto', part], `${file} imports ${name}`).toContain(top);
      }
    }
  });

  it('lets proto import nothing below it', () => {
    for (const file of sources('proto').filter((name) => !name.startsWith('proto/gen'))) {
      for (const name of importsOf(file).filter((found) => found.startsWith('.'))) {
        const top = path.normalize(path.join(path.dirname(file), name)).split('/')[0];
        expect(top, `${file} imports ${name}`).toBe('proto');
      }
    }
  });

  it.each(PURE)('keeps %s free of effects', (file) => {
    for (const name of importsOf(file)) expect(name, `${file} imports ${name}`).not.toMatch(EFFECTS);
    const text = readFileSync(path.join(ROOT, file), 'utf8');
    expect(text, file).not.toMatch(/\b(Date\.now|performance\.now|setTimeout|setInterval|Math\.random|process\.env)\b/);
  });
});
