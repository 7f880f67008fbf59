// Columns for terminals.

/** Rows with their columns aligned, two blanks apart. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length);
    });
  }
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join("  ")
      .trimEnd(),
  );
}

/** Two lists beside each other, the shorter one padded. */
export function sideBySide(left: readonly string[], right: readonly string[]): string[] {
  const length = Math.max(left.length, right.length);
  return table(Array.from({ length }, (_, n) => [left[n] ?? "", right[n] ?? ""]));
}
