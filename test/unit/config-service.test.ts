import { describe, expect, it } from 'vitest';
import { parseServiceConfig, SERVICE_KEYS } from '../../control-plane/config/service.js';
import { parseSettings } from '../../control-plane/config/settings.js';
import { MemoryMode } from '../../proto/gen/initless/v1/types.js';
import { InitlessError } from '../../proto/rpc/errors.js';

const { settings } = parseSettings(undefined, 'defaults');
const LEAST = 'service_name: flask\nservice_port: 9000\nhost_port: 8001\n';

function parse(text: string) {
  return parseServiceConfig(text, 'config.yaml', settings);
}

/** The faults of a text, one a line. */
function faults(text: string): string[] {
  try {
    parse(text);
  } catch (error) {
    expect(error).toBeInstanceOf(InitlessError);
    expect((error as InitlessError).code).toBe('BAD_CONFIG');
    return (error as InitlessError).violations.map((one) => one.description);
  }
  return [];
}

describe('config.yaml', () => {
  it('needs three keys, and has a default for every other one', () => {
    expect(parse(LEAST)).toEqual({
      serviceName: 'flask',
      isEnabled: true,
      imageName: 'flask',
      tagName: 'latest',
      checkpointTagName: 'checkpoint',
      checkpointName: 'flask',
      startCmd: [],
      servicePort: 9000,
      hostPort: 8001,
      healthCheck: { path: '/', wanted: '', timeoutMs: 1_000 },
      msgCheckpoint: '',
      warmup: [],
      beforeCheckpoint: '',
      afterRestore: '',
      env: {},
      startTimeoutMs: 120_000,
      hangTimeoutMs: 30_000,
      healthCheckTimeoutMs: 10_000,
      idleTimeoutMs: 300_000,
      maxConcurrency: 100,
      maxPoolSize: 10,
      preStartPoolSize: 0,
      preStartPoolAuto: false,
      preStartTimeoutMs: 900_000,
      queueTimeoutMs: 30_000,
      queueLimit: 1_000,
      spread: 3,
      dockerfile: 'Dockerfile',
      reuse: false,
      volumes: [],
      memoryLimit: 0,
      cpus: 0,
      memory: MemoryMode.MEMORY_MODE_UNSPECIFIED,
    });
  });

  it('may put values on the line after the key, with comments in between', () => {
    const config = parse(`
service_name: #The name of this service.
  gs_spring_boot
is_enabled: #Is it ready to be published?
  true
image_name:
  gs_spring_boot
tag_name:
  init
checkpoint_tag_name:
  latest
checkpoint_name:
  spring_boot_checkpoint
start_cmd:
  - java
  - -jar
  - app.jar
service_port:
  8080
host_port: #The port that you want to publish the service outside the container.
  8002
health_check: #Http GET sent to a running container to test if it has been ready.
  path: "/" #The http path and query to be tested.
  wanted: "Greetings from Spring Boot!"
  timeout: 150 #How many milliseconds to be waited once?
msg_checkpoint:
  "Started Application"
`);
    expect(config).toMatchObject({
      serviceName: 'gs_spring_boot',
      tagName: 'init',
      checkpointName: 'spring_boot_checkpoint',
      startCmd: ['java', '-jar', 'app.jar'],
      servicePort: 8080,
      hostPort: 8002,
      healthCheck: { path: '/', wanted: 'Greetings from Spring Boot!', timeoutMs: 150 },
      msgCheckpoint: 'Started Application',
    });
  });

  // Every key wrong in turn: what is written on line 4, and the fault it must be told as.
  const WRONG: [key: string, written: string, fault: string][] = [
    ['is_enabled', 'is_enabled: maybe', 'config.yaml:4: is_enabled: found "maybe", expected true or false'],
    ['image_name', 'image_name: Flask:1', 'config.yaml:4: image_name: found "Flask:1", expected an image name'],
    ['tag_name', 'tag_name: -x', 'config.yaml:4: tag_name: found "-x", expected a tag'],
    [
      'checkpoint_tag_name',
      'checkpoint_tag_name: a/b',
      'config.yaml:4: checkpoint_tag_name: found "a/b", expected a tag',
    ],
    [
      'checkpoint_name',
      'checkpoint_name: ../x',
      'config.yaml:4: checkpoint_name: found "../x", expected the name of one folder',
    ],
    ['start_cmd', 'start_cmd: python app.py', 'config.yaml:4: start_cmd: found "python app.py", expected a list'],
    ['health_check', 'health_check: /', 'config.yaml:4: health_check: found "/", expected a map'],
    ['health_check.path', 'health_check: {path: x}', 'config.yaml:4: health_check.path: found "x", expected a path'],
    [
      'health_check.wanted',
      'health_check: {wanted: }',
      'config.yaml:4: health_check.wanted: found nothing, expected the text',
    ],
    [
      'health_check.timeout',
      'health_check: {timeout: 2}',
      'config.yaml:4: health_check.timeout: found 2, expected milliseconds',
    ],
    [
      'msg_checkpoint',
      'msg_checkpoint: [a]',
      'config.yaml:4: msg_checkpoint: found a list (["a"]), expected a line of text',
    ],
    ['warmup', 'warmup: [{path: /, count: 0}]', 'config.yaml:4: warmup[0].count: found 0, expected a list of paths'],
    ['before_checkpoint', 'before_checkpoint: gc', 'config.yaml:4: before_checkpoint: found "gc", expected a path'],
    ['after_restore', 'after_restore: "/a b"', 'config.yaml:4: after_restore: found "/a b", expected a path'],
    ['env', 'env: {"A-B": 1}', 'config.yaml:4: env.A-B: found 1, expected a map of names'],
    ['protocol', 'protocol: tcp', 'config.yaml:4: protocol: found "tcp", expected "http" ("tcp" is not supported yet)'],
    ['volumes', 'volumes: [a]', 'config.yaml:4: volumes[0]: found "a", expected "SOURCE:/path/inside"'],
    ['memory_limit', 'memory_limit: much', 'config.yaml:4: memory_limit: found "much", expected bytes'],
    ['cpus', 'cpus: 0', 'config.yaml:4: cpus: found 0, expected a number of CPUs, 0.01 at least'],
    ['memory', 'memory: fast', 'config.yaml:4: memory: found "fast", expected "auto", "mapped", "copied" or "lazy"'],
    ['reuse', 'reuse: 1', 'config.yaml:4: reuse: found 1, expected true or false'],
    [
      'pre_start_pool_size',
      'pre_start_pool_size: -1',
      'config.yaml:4: pre_start_pool_size: found -1, expected a whole number',
    ],
    ['max_pool_size', 'max_pool_size: 0', 'config.yaml:4: max_pool_size: found 0, expected a whole number'],
    [
      'pre_start_timeout',
      'pre_start_timeout: 1440',
      'config.yaml:4: pre_start_timeout: found 1440, expected minutes above 0 and below 1440',
    ],
    ['idle_timeout', 'idle_timeout: 0', 'config.yaml:4: idle_timeout: found 0, expected minutes above 0'],
    [
      'health_check_timeout',
      'health_check_timeout: "10"',
      'config.yaml:4: health_check_timeout: found "10", expected seconds above 0',
    ],
    [
      'hang_timeout',
      'hang_timeout: 3601',
      'config.yaml:4: hang_timeout: found 3601, expected seconds from 0 (never) to 3600',
    ],
    ['start_timeout', 'start_timeout: -1', 'config.yaml:4: start_timeout: found -1, expected seconds above 0'],
    ['max_concurrency', 'max_concurrency: 1.5', 'config.yaml:4: max_concurrency: found 1.5, expected a whole number'],
    ['queue_timeout', 'queue_timeout: .inf', 'config.yaml:4: queue_timeout: found Infinity, expected seconds above 0'],
    ['queue_limit', 'queue_limit:', 'config.yaml:4: queue_limit: found nothing, expected a whole number'],
    ['spread', 'spread: 1.5', 'config.yaml:4: spread: found 1.5, expected a whole number of hosts'],
  ];

  it.each(WRONG)('names file, line, key, what was found and what is expected: %s', (_key, written, fault) => {
    const [only, ...more] = faults(`${LEAST}${written}\n`);
    expect(only).toContain(fault);
    expect(more).toEqual([]);
  });

  it('is tested here for every key there is', () => {
    const tested = new Set([...WRONG.map(([key]) => key.split('.')[0]), 'service_name', 'service_port', 'host_port']);
    expect(SERVICE_KEYS.filter((key) => !tested.has(key))).toEqual([]);
  });

  it.each(['Flask', '../etc', '.', 'a/b', 'a..b', '', 'x'.repeat(64), '"a\\u0000b"', '"a\\nb"', 'ünïcode'])(
    'does not take the name %s',
    (name) => {
      expect(faults(`service_name: ${name}\nservice_port: 1\nhost_port: 2\n`)[0]).toContain(
        'config.yaml:1: service_name: found',
      );
    },
  );

  it.each(['0', '65536', '"80"', '80.5', '-1'])('does not take the port %s', (port) => {
    const text = `service_name: a\nservice_port: ${port}\nhost_port: ${port}\n`;
    expect(faults(text).map((fault) => fault.split(':', 3).join(':'))).toEqual([
      'config.yaml:2: service_port',
      'config.yaml:3: host_port',
    ]);
  });

  it('tells all faults at once: unknown keys with what was meant, duplicates, what is missing', () => {
    expect(faults('service_name: a\nhostport: 1\nservice_name: b\nhealth_check:\n  wants: x\n')).toEqual([
      'config.yaml:1: service_port: found nothing, expected a port from 1 to 65535',
      'config.yaml:1: host_port: found nothing, expected a port from 1 to 65535',
      'config.yaml:2: hostport: found a key that is not known, expected "host_port", perhaps',
      'config.yaml:3: service_name: found the key a second time (it is on line 1 too), expected it once',
      'config.yaml:5: health_check.wants: found a key that is not known, expected "wanted", perhaps',
    ]);
  });

  it.each([
    ['', 'config.yaml:1: found an empty file'],
    ['- a\n', 'config.yaml:1: found a list'],
    ['just text', 'config.yaml:1: found "just text"'],
    ['a: [1\nb: 2\n', 'expected valid YAML'],
    ['a: b: c\n', 'config.yaml:1: found'],
  ])('says what is wrong with a text that is not keys and values: %j', (text, fault) => {
    expect(faults(text)[0]).toContain(fault);
  });

  it('does not expand aliases without end', () => {
    const bomb = `${LEAST}env:\n  A: &a [x,x,x,x,x,x,x,x,x]\n  B: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n  C: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n  D: [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n`;
    expect(faults(bomb)[0]).toContain('aliases');
  });

  it.each([
    ['{b: 1, a: [2]}', '{"a":[2],"b":1}'],
    ['\'{"b": 1, "a": [2]}\'', '{"a":[2],"b":1}'],
    ['[1, {z: 1, y: 2}]', '[1,{"y":2,"z":1}]'],
    ['"  hello\\n"', 'hello'],
    ['9999', '9999'],
    ['1.10', '1.10'],
    ['"{not json"', '{not json'],
  ])('takes a wanted answer of any shape: %s', (written, wanted) => {
    expect(parse(`${LEAST}health_check:\n  wanted: ${written}\n`).healthCheck?.wanted).toBe(wanted);
  });

  it('keeps numbers in commands and variables as they are written', () => {
    const config = parse(`${LEAST}start_cmd: [python, 3.10, 8080]\nenv: {VERSION: 1.20, ON: true, NAME: x}\n`);
    expect(config.startCmd).toEqual(['python', '3.10', '8080']);
    expect(config.env).toEqual({ VERSION: '1.20', ON: 'true', NAME: 'x' });
  });

  it('may have pool keys of its own, in the units of the settings', () => {
    const own = parse(
      `${LEAST}idle_timeout: 0.5\nqueue_timeout: 1.5\nmax_pool_size: 3\nwarmup: [/a, {path: /b, count: 5}]\n`,
    );
    expect(own).toMatchObject({ idleTimeoutMs: 30_000, queueTimeoutMs: 1_500, maxPoolSize: 3 });
    expect(own.warmup).toEqual([
      { path: '/a', count: 1 },
      { path: '/b', count: 5 },
    ]);
    const global = parseSettings('idle_timeout: 2\n', 'settings.yaml').settings;
    expect(parseServiceConfig(LEAST, 'config.yaml', global).idleTimeoutMs).toBe(120_000);
  });

  it('has a way to fill memory: the best one where none is named', () => {
    expect(parse(LEAST).memory).toBe(MemoryMode.MEMORY_MODE_UNSPECIFIED);
    const named = (mode: string) => parse(`${LEAST}memory: ${mode}\n`).memory;
    expect(['auto', 'mapped', 'copied', 'lazy'].map(named)).toEqual([0, 1, 2, 3]);
    expect(faults(`${LEAST}memory: shared\n`)).toEqual([
      expect.stringMatching(/4: memory: found .*shared.*, expected "auto", /),
    ]);
  });

  it('takes a part of a CPU, and no less than the kernel can count', () => {
    expect(parse(`${LEAST}cpus: 0.25\n`).cpus).toBe(0.25);
    expect(faults(`${LEAST}cpus: 0.009\n`)[0]).toContain('cpus: found 0.009');
  });
});
