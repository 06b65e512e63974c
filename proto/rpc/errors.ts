import { ClientError, Status } from 'nice-grpc-common';
import { RichClientError, RichServerError } from 'nice-grpc-error-details';
import { Problem } from '../gen/initless/v1/types.js';

/**
 * Every error that leaves a process, with the one gRPC status and the one HTTP status it is shown as.
 * Codes are stable: programs may depend on them.
 */
export const CATALOGUE = {
  // What was asked for is not right.
  BAD_CONFIG: { grpc: Status.INVALID_ARGUMENT, http: 400 },
  BAD_NAME: { grpc: Status.INVALID_ARGUMENT, http: 400 },
  BAD_REQUEST: { grpc: Status.INVALID_ARGUMENT, http: 400 },
  BAD_ARCHIVE: { grpc: Status.INVALID_ARGUMENT, http: 400 },
  TOO_LARGE: { grpc: Status.RESOURCE_EXHAUSTED, http: 413 },
  NO_DOCKERFILE: { grpc: Status.INVALID_ARGUMENT, http: 400 },
  NOT_FOUND: { grpc: Status.NOT_FOUND, http: 404 },
  PORT_TAKEN: { grpc: Status.ALREADY_EXISTS, http: 409 },
  ALREADY_CONNECTED: { grpc: Status.ALREADY_EXISTS, http: 409 },
  BUSY: { grpc: Status.ABORTED, http: 409 },
  NOT_ALLOWED: { grpc: Status.FAILED_PRECONDITION, http: 409 },

  // A revision could not be made.
  BUILD_FAILED: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  BASE_IMAGE_MISSING: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  START_FAILED: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  EXITED_EARLY: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  MESSAGE_TIMEOUT: { grpc: Status.DEADLINE_EXCEEDED, http: 504 },
  HEALTH_MISMATCH: { grpc: Status.FAILED_PRECONDITION, http: 502 },
  HEALTH_TIMEOUT: { grpc: Status.DEADLINE_EXCEEDED, http: 504 },
  NOT_LISTENING: { grpc: Status.FAILED_PRECONDITION, http: 502 },
  DUMP_FAILED: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  COPY_FAILED: { grpc: Status.UNAVAILABLE, http: 503 },
  VOLUME_MISSING: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  VOLUME_REFUSED: { grpc: Status.FAILED_PRECONDITION, http: 503 },

  // A checkpoint cannot be used, or an instance not be had.
  NO_CHECKPOINT: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  CHECKPOINT_DAMAGED: { grpc: Status.DATA_LOSS, http: 503 },
  CHECKPOINT_INCOMPATIBLE: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  RESTORE_FAILED: { grpc: Status.INTERNAL, http: 502 },
  COLD_ORIGIN: { grpc: Status.FAILED_PRECONDITION, http: 502 },
  INSTANCE_LOST: { grpc: Status.UNAVAILABLE, http: 502 },
  LEASE_HELD: { grpc: Status.FAILED_PRECONDITION, http: 409 },
  NOT_READY: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  DISABLED: { grpc: Status.FAILED_PRECONDITION, http: 503 },
  NO_HOST: { grpc: Status.UNAVAILABLE, http: 503 },
  EXHAUSTED: { grpc: Status.RESOURCE_EXHAUSTED, http: 503 },
  ELSEWHERE: { grpc: Status.RESOURCE_EXHAUSTED, http: 503 },
  PORTS_EXHAUSTED: { grpc: Status.RESOURCE_EXHAUSTED, http: 503 },
  QUEUE_FULL: { grpc: Status.RESOURCE_EXHAUSTED, http: 503 },
  QUEUE_TIMEOUT: { grpc: Status.DEADLINE_EXCEEDED, http: 503 },
  UPSTREAM_FAILED: { grpc: Status.UNAVAILABLE, http: 502 },
  UPSTREAM_TIMEOUT: { grpc: Status.DEADLINE_EXCEEDED, http: 504 },

  // The machine, or a part of the system, is not as it must be.
  ENGINE_DOWN: { grpc: Status.UNAVAILABLE, http: 503 },
  CONTROL_PLANE_DOWN: { grpc: Status.UNAVAILABLE, http: 503 },
  AGENT_DOWN: { grpc: Status.UNAVAILABLE, http: 503 },
  STORE_DAMAGED: { grpc: Status.DATA_LOSS, http: 500 },
  STORE_FAILED: { grpc: Status.UNAVAILABLE, http: 503 },
  MEMORY_SHORT: { grpc: Status.RESOURCE_EXHAUSTED, http: 503 },
  DISK_FULL: { grpc: Status.RESOURCE_EXHAUSTED, http: 507 },
  UNSUPPORTED: { grpc: Status.FAILED_PRECONDITION, http: 501 },
  SETUP_FAILED: { grpc: Status.FAILED_PRECONDITION, http: 500 },

  // Time and people.
  DEADLINE: { grpc: Status.DEADLINE_EXCEEDED, http: 504 },
  CANCELLED: { grpc: Status.CANCELLED, http: 499 },
  INTERNAL: { grpc: Status.INTERNAL, http: 500 },
} as const satisfies Record<string, { grpc: Status; http: number }>;

/** A code of the catalogue. */
export type ErrorCode = keyof typeof CATALOGUE;

/** What an error may say beyond its message. */
export interface ErrorContext {
  /** The thing it is about: a service, a path, an instance. */
  subject?: string;
  /** What the reader should do next, as a sentence. */
  nextStep?: string;
  /** The last lines of the output that shows it. */
  outputTail?: readonly string[];
  /** Where in a configuration file: one entry for each fault. */
  violations?: readonly { field: string; description: string }[];
  /** What caused it. */
  cause?: unknown;
}

/** The one error class that crosses a module's or a process's border. */
export class InitlessError extends Error {
  readonly code: ErrorCode;
  readonly subject: string;
  readonly nextStep: string;
  readonly outputTail: readonly string[];
  readonly violations: readonly { field: string; description: string }[];

  constructor(code: ErrorCode, message: string, context: ErrorContext = {}) {
    super(message, { cause: context.cause });
    this.name = 'InitlessError';
    this.code = code;
    this.subject = context.subject ?? '';
    this.nextStep = context.nextStep ?? '';
    this.outputTail = context.outputTail ?? [];
    this.violations = context.violations ?? [];
  }
}

/** Whether `text` is a code of the catalogue; what comes over the wire may be from a newer version. */
function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(CATALOGUE, text);
}

/** Any thrown thing as an {@link InitlessError}; a full disk and an abort are recognised, the rest is INTERNAL. */
export function toInitlessError(thrown: unknown): InitlessError {
  if (thrown instanceof InitlessError) return thrown;
  if (!(thrown instanceof Error)) return new InitlessError('INTERNAL', String(thrown));
  if ((thrown as NodeJS.ErrnoException).code === 'ENOSPC') {
    return new InitlessError('DISK_FULL', `no space left on the disk: ${thrown.message}`, {
      cause: thrown,
      nextStep: "free some space, for instance with 'initless clean --dry-run' to see what is ours, then try again",
    });
  }
  if (thrown.name === 'AbortError') return new InitlessError('CANCELLED', thrown.message, { cause: thrown });
  return new InitlessError('INTERNAL', thrown.message, { cause: thrown });
}

/** An error as the message that crosses processes. */
export function problemOf(thrown: unknown): Problem {
  const error = toInitlessError(thrown);
  return Problem.fromPartial({
    code: error.code,
    message: error.message,
    nextStep: error.nextStep,
    outputTail: [...error.outputTail],
  });
}

/** The error that a message from another process stands for. */
export function errorOf(problem: Problem, subject = ''): InitlessError {
  return new InitlessError(isErrorCode(problem.code) ? problem.code : 'INTERNAL', problem.message, {
    subject,
    nextStep: problem.nextStep,
    outputTail: problem.outputTail,
  });
}

/** HTTP status that an error is answered with. */
export function httpStatusOf(error: InitlessError): number {
  return CATALOGUE[error.code].http;
}

/** The gRPC form of an error: status, message with next step, and google.rpc.ErrorInfo (and BadRequest) as details. */
export function toGrpcError(thrown: unknown): RichServerError {
  const error = toInitlessError(thrown);
  const metadata: Record<string, string> = {};
  if (error.subject) metadata.subject = error.subject;
  if (error.nextStep) metadata.next_step = error.nextStep;
  if (error.outputTail.length > 0) metadata.output_tail = error.outputTail.slice(-20).join('\n');
  const text = error.nextStep ? `${error.message}\n${error.nextStep}` : error.message;
  return new RichServerError(CATALOGUE[error.code].grpc, text, [
    { $type: 'google.rpc.ErrorInfo', reason: error.code, domain: 'initless', metadata },
    ...(error.violations.length > 0
      ? [
          {
            $type: 'google.rpc.BadRequest' as const,
            fieldViolations: error.violations.map((violation) => ({
              $type: 'google.rpc.BadRequest.FieldViolation' as const,
              ...violation,
            })),
          },
        ]
      : []),
  ]);
}

/** The error that a failed gRPC call stands for, as far as its details say. `target` names what was called. */
export function fromGrpcError(thrown: unknown, target: string): InitlessError {
  if (thrown instanceof InitlessError) return thrown;
  if (!(thrown instanceof ClientError)) return toInitlessError(thrown);
  if (thrown instanceof RichClientError) {
    const info = thrown.extra.find((detail) => detail.$type === 'google.rpc.ErrorInfo');
    if (info?.$type === 'google.rpc.ErrorInfo' && info.domain === 'initless') {
      const violations = thrown.extra.find((detail) => detail.$type === 'google.rpc.BadRequest');
      const nextStep = info.metadata.next_step ?? '';
      const message = nextStep ? thrown.details.replace(`\n${nextStep}`, '') : thrown.details;
      return new InitlessError(isErrorCode(info.reason) ? info.reason : 'INTERNAL', message, {
        subject: info.metadata.subject,
        nextStep,
        outputTail: info.metadata.output_tail?.split('\n'),
        violations: violations?.$type === 'google.rpc.BadRequest' ? violations.fieldViolations : [],
        cause: thrown,
      });
    }
  }
  const code: ErrorCode =
    thrown.code === Status.UNAVAILABLE
      ? 'CONTROL_PLANE_DOWN'
      : thrown.code === Status.DEADLINE_EXCEEDED
        ? 'DEADLINE'
        : thrown.code === Status.CANCELLED
          ? 'CANCELLED'
          : thrown.code === Status.INVALID_ARGUMENT
            ? 'BAD_REQUEST'
            : thrown.code === Status.NOT_FOUND
              ? 'NOT_FOUND'
              : 'INTERNAL';
  return new InitlessError(code, `${target}: ${Status[thrown.code]}: ${thrown.details}`, { cause: thrown });
}
