// From a file's text to statements: comments out, `;` and newlines split, blanks squeezed.
//
// Knows quotes, so that "a;b # c" stays whole; knows nothing of what a statement means. Refuses a
// comment or a string that does not end.

import { Fault, type Statement, within } from "./fault.ts";

/** The statements of `text`, empty ones left out. Comments are `# …`, `// …` and those between slash-star pairs. */
export function readStatements(file: string, text: string): Statement[] {
  const statements: Statement[] = [];
  let line = 1;
  let start = 1;
  let out = "";
  const close = () => {
    const squeezed = out.trim();
    if (squeezed !== "") statements.push({ text: squeezed, place: { file, line: start } });
    out = "";
    start = line;
  };
  const broken = (problem: string) =>
    within({ text: text.split("\n")[start - 1] ?? "", place: { file, line: start } }, () => {
      throw new Fault(problem);
    });
  for (let i = 0; i < text.length; ) {
    const char = text[i]!;
    if (char === "\n" || char === ";") {
      if (char === "\n") line++;
      close();
      i++;
    } else if (char === "#" || text.startsWith("//", i)) {
      while (i < text.length && text[i] !== "\n") i++;
    } else if (text.startsWith("/*", i)) {
      const end = text.indexOf("*/", i + 2);
      if (end < 0) return broken("comment without an end");
      for (const c of text.slice(i, end)) if (c === "\n") line++;
      if (out.trim() === "") start = line;
      out += " ";
      i = end + 2;
    } else if (char === '"') {
      const end = endOfString(text, i);
      if (end < 0) return broken("string without an end");
      out += text.slice(i, end);
      i = end;
    } else if (char === "'") {
      const end = endOfCharacter(text, i);
      out += text.slice(i, end);
      i = end;
    } else if (/\s/.test(char)) {
      if (!out.endsWith(" ")) out += " ";
      i++;
    } else {
      out += char;
      i++;
    }
  }
  close();
  return statements;
}

/** The index after the string that opens at `start`, or -1 where the line ends first. */
export function endOfString(text: string, start: number): number {
  for (let i = start + 1; i < text.length && text[i] !== "\n"; i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === '"') return i + 1;
  }
  return -1;
}

/** The index after the character constant at `start`: `'a`, `'a'` and `'\n` are the forms. */
export function endOfCharacter(text: string, start: number): number {
  const length = text[start + 1] === "\\" ? 3 : 2;
  return text[start + length] === "'" ? start + length + 1 : Math.min(start + length, text.length);
}

/** Splits at commas outside strings and parentheses; each piece trimmed. An empty text has no pieces. */
export function splitCommas(text: string): string[] {
  if (text.trim() === "") return [];
  const pieces: string[] = [];
  let depth = 0;
  let from = 0;
  for (let i = 0; i < text.length; i++) {
    const char = text[i]!;
    if (char === '"') i = Math.max(endOfString(text, i) - 1, i);
    else if (char === "'") i = endOfCharacter(text, i) - 1;
    else if (char === "(") depth++;
    else if (char === ")") depth--;
    else if (char === "," && depth === 0) {
      pieces.push(text.slice(from, i).trim());
      from = i + 1;
    }
  }
  return [...pieces, text.slice(from).trim()];
}

const ESCAPES: Record<string, number> = { b: 8, f: 12, n: 10, r: 13, t: 9, '"': 34, "\\": 92, "'": 39 };

/** The bytes of a quoted string: UTF-8, with C's escapes, `\0` to `\377` and `\x41`. Throws Fault on anything else. */
export function parseString(text: string): Uint8Array {
  if (!text.startsWith('"') || endOfString(text, 0) !== text.length)
    throw new Fault(`expected a string, found '${text}'`);
  const bytes: number[] = [];
  const body = text.slice(1, -1);
  for (let i = 0; i < body.length; ) {
    const code = /^\\(?:([0-7]{1,3})|x([0-9a-fA-F]+))/.exec(body.slice(i));
    if (code) {
      bytes.push((code[1] ? Number.parseInt(code[1], 8) : Number.parseInt(code[2]!.slice(-2), 16)) & 0xff);
      i += code[0].length;
    } else if (body[i] === "\\") {
      const value = ESCAPES[body[i + 1]!];
      if (value === undefined) throw new Fault(`unknown escape '\\${body[i + 1]}' in a string`);
      bytes.push(value);
      i += 2;
    } else {
      const char = String.fromCodePoint(body.codePointAt(i)!);
      bytes.push(...new TextEncoder().encode(char));
      i += char.length;
    }
  }
  return Uint8Array.from(bytes);
}
