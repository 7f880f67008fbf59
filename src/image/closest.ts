// The name that someone who wrote another one probably meant.

/** The name of `names` nearest to `wanted` by edits, or undefined if none is near; the first of equals. */
export function closestName(wanted: string, names: Iterable<string>): string | undefined {
  let best: string | undefined;
  let least = Math.max(2, Math.floor(wanted.length / 3)) + 1;
  for (const name of names) {
    if (Math.abs(name.length - wanted.length) >= least) continue;
    const distance = edits(wanted, name);
    if (distance < least) [best, least] = [name, distance];
  }
  return best;
}

/** Levenshtein's distance: insertions, deletions and substitutions of one character. */
function edits(from: string, to: string): number {
  let row = Array.from({ length: to.length + 1 }, (_, j) => j);
  for (let i = 0; i < from.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < to.length; j++) {
      const substituted = row[j]! + (from[i] === to[j] ? 0 : 1);
      next.push(Math.min(substituted, row[j + 1]! + 1, next[j]! + 1));
    }
    row = next;
  }
  return row[to.length]!;
}
