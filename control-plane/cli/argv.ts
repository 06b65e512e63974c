/** The original project's spellings of two commands. Commander takes neither `-t` nor `-clean` for a command. */
const ALIASES: Readonly<Record<string, string>> = { '-t': 'test', '-clean': 'clean' };

/** Options with a value that may stand before a command. */
const GLOBAL_OPTIONS = ['--server', '--timeout', '--project', '--port-base'];

/**
 * Arguments with an alias in the command's place replaced: `-t` by `test`, `-clean` by `clean`. Only there, so that
 * what follows a command keeps its meaning.
 *
 * @param args what stands after the program's name.
 */
export function rewriteAliases(args: readonly string[]): string[] {
  let place = 0;
  for (let arg = args[place]; arg?.startsWith('--'); arg = args[place]) {
    place += GLOBAL_OPTIONS.includes(arg) ? 2 : 1;
  }
  const command = args[place];
  if (command === undefined || !Object.hasOwn(ALIASES, command)) return [...args];
  return [...args.slice(0, place), ALIASES[command] as string, ...args.slice(place + 1)];
}
