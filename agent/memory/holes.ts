import { damaged } from '../checkpoint/manifest.js';
import { run } from '../runtime/exec.js';

/**
 * Node has no lseek with SEEK_DATA (3) and SEEK_HOLE (4); Perl, which every Debian has, passes them on. Reads gaps as lines
 * "START END" and prints the data inside them likewise. A SEEK_DATA that finds none up to the end of the file fails (ENXIO).
 */
const SCRIPT = `
use strict;
open(my $file, '<', $ARGV[0]) or die "$!\\n";
my $found = 0;
LINE: while (my $line = <STDIN>) {
  my ($at, $end) = split ' ', $line;
  while ($at < $end) {
    my $data = sysseek($file, $at, 3);
    last if !defined($data) && $!{ENXIO};
    defined($data) or die "$!\\n";
    last if $data >= $end;
    my $hole = sysseek($file, $data, 4) or die "$!\\n";
    $hole = $end if $hole > $end;
    print $data + 0, " ", $hole + 0, "\\n";
    last LINE if ++$found >= $ARGV[1];
    $at = $hole;
  }
}`;
/** Bound on the pieces that are listed: more would not fit into what is kept of a program's output. */
const MAX_FOUND = 50_000;
/** Bound on the data that a file system may keep beside what was written, in bytes: it rounds up to its records. */
const MAX_EXTRA = 1024 * 1024 * 1024;

/**
 * Where a file holds data within gaps that should be holes. File systems may keep zeros there, so that what is found
 * still has to be read. Errors: CHECKPOINT_DAMAGED when it is so much that the gaps are no holes at all.
 */
export async function dataWithin(
  file: string,
  gaps: readonly (readonly [start: number, end: number])[],
  signal?: AbortSignal,
): Promise<[start: number, end: number][]> {
  const input = gaps.map(([start, end]) => `${start} ${end}\n`).join('');
  const { stdout } = await run('perl', ['-MErrno', '-e', SCRIPT, file, `${MAX_FOUND}`], {
    input,
    signal,
    label: `the holes of ${file}`,
  });
  const found = stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.split(' ').map(Number) as [number, number]);
  const extra = found.reduce((sum, [start, end]) => sum + end - start, 0);
  if (extra > MAX_EXTRA || found.length >= MAX_FOUND) {
    throw damaged(`${file} holds ${extra} bytes or more in ${found.length} places that should be empty`, file);
  }
  return found;
}
