import type { BuildOutput } from '../../../proto/gen/initless/v1/types.js';
import { plainText } from '../format.js';

/** Lines are cut to this length: a demo is watched on a terminal. */
const LINE_LENGTH = 140;
/** What an image build says of its steps: BuildKit's "[build 2/5] RUN ..." and the classic builder's "Step 2/5 : RUN ...". */
const BUILD_STEP = /^(\[[^\]]*\d+\/\d+\] |Step \d+\/\d+ : )/;
/** Lines of these stages come in hundreds (apt, pip, Maven); only the steps among them are told. */
const NOISY_STAGES = new Set(['image']);

/**
 * Chooses what a demo tells of the making of a service: every change of stage, and in it the lines that say how far it
 * is. Gives undefined for a line that is not worth telling.
 */
export class Narrator {
  readonly #service: string;
  #stage = '';

  constructor(service: string) {
    this.#service = service;
  }

  /** The line to show for what came. */
  tell({ stage, line }: Pick<BuildOutput, 'stage' | 'line'>): string | undefined {
    const begins = stage !== this.#stage;
    this.#stage = stage;
    const text = plainText(line).trim();
    const matters = !NOISY_STAGES.has(stage) || BUILD_STEP.test(text);
    if (!begins && (!matters || text === '')) return undefined;
    return `  ${this.#service.padEnd(15)} ${stage.padEnd(7)} ${matters ? text : ''}`.trimEnd().slice(0, LINE_LENGTH);
  }
}

/** Says that a long step still goes on: what has not ended, how long it has taken, what it said last. */
export function stillAtIt(service: string, startedAt: number, now: number, last: Pick<BuildOutput, 'stage' | 'line'>) {
  const seconds = Math.round((now - startedAt) / 1000);
  return `  ${service.padEnd(15)} ... ${seconds} s, ${last.stage || 'waiting'}: ${plainText(last.line).trim()}`.slice(
    0,
    LINE_LENGTH,
  );
}
