// Macros and repetitions: what is between `.macro` and `.endm`, `.rept`, `.irp`, `.irpc` and `.endr`.
//
// Works on text, as GNU as does: an argument ends at a comma, even in parentheses, or at a blank between
// two operands. Refuses missing required arguments, unknown names and arguments too many.

import { fail, type Statement } from "./fault.ts";
import { endOfCharacter, endOfString, readStatements } from "./source.ts";

interface Parameter {
  readonly name: string;
  readonly kind: "plain" | "required" | "rest";
  readonly fallback: string;
}

export interface Macro {
  readonly name: string;
  readonly parameters: readonly Parameter[];
  readonly body: readonly Statement[];
}

const NAME = "[A-Za-z_.$][\\w.$]*";

/** A macro from what follows `.macro` and its body. */
export function defineMacro(head: string, body: readonly Statement[]): Macro {
  const [, name, list] =
    new RegExp(`^(${NAME})\\s*,?\\s*(.*)$`, "s").exec(head) ?? fail("a macro wants a name");
  const parameters = splitArguments(list!.replace(/\s*([=:])\s*/g, "$1")).map((text): Parameter => {
    const parts =
      new RegExp(`^(${NAME})(?::(req|vararg))?(?:=(.*))?$`, "s").exec(text) ??
      fail(`'${text}' is not a macro parameter`);
    const kind = parts[2] === "req" ? "required" : parts[2] === "vararg" ? "rest" : "plain";
    return { name: parts[1]!, kind, fallback: unquote(parts[3] ?? "") };
  });
  return { name: name!, parameters, body };
}

/** The statements that `macro` with the arguments in `text` stands for; `count` is the value of `\@`. */
export function expandMacro(macro: Macro, text: string, count: number, call: Statement): Statement[] {
  const values = bindArguments(macro, text);
  return expandBody(macro.body, values, count, `macro ${macro.name}`, call);
}

/** The body once for each value, with `\name` replaced; `.rept` has no name. */
export function repeatBody(
  name: string | null,
  values: readonly string[],
  body: readonly Statement[],
  count: number,
  call: Statement,
): Statement[] {
  return values.flatMap((value) =>
    expandBody(body, new Map(name === null ? [] : [[name, value]]), count, "repetition", call),
  );
}

/** `name` and the list of values of an `.irp` or `.irpc`. */
export function parseIteration(head: string, letters: boolean): { name: string; values: string[] } {
  const [, name, list] = new RegExp(`^(${NAME})\\s*,?\\s*(.*)$`, "s").exec(head) ?? fail("expected a name");
  if (letters) return { name: name!, values: [...unquote(list!.trim())] };
  const values = splitArguments(list!).map(unquote);
  return { name: name!, values: values.length > 0 ? values : [""] };
}

function expandBody(
  body: readonly Statement[],
  values: ReadonlyMap<string, string>,
  count: number,
  what: string,
  call: Statement,
): Statement[] {
  return body.flatMap(({ text, place }) => {
    const filled = text.replace(/\\(?:\(\)|@|([A-Za-z_.$][\w.$]*))/g, (whole, name: string | undefined) => {
      if (whole === "\\()") return "";
      if (whole === "\\@") return String(count);
      return values.get(name!) ?? whole;
    });
    const from = { what, place: call.place };
    // An argument may bring in separators, so a changed line is split again.
    if (filled === text) return [{ text, place: { ...place, from } }];
    return readStatements(place.file, filled).map((piece) => ({
      text: piece.text,
      place: { ...place, from },
    }));
  });
}

function bindArguments({ name, parameters }: Macro, text: string): Map<string, string> {
  const values = new Map<string, string>();
  let position = 0;
  let rest = text.trim();
  while (rest !== "") {
    const named = new RegExp(`^(${NAME})\\s*=(?!=)\\s*`).exec(rest);
    if (named && parameters.some((parameter) => parameter.name === named[1])) {
      const [value, after] = takeArgument(rest.slice(named[0].length));
      values.set(named[1]!, unquote(value));
      rest = after;
      continue;
    }
    const parameter =
      parameters[position++] ??
      fail(`macro '${name}' takes ${parameters.length} argument(s); '${rest}' is left over`);
    if (parameter.kind === "rest") {
      values.set(parameter.name, rest);
      break;
    }
    const [value, after] = takeArgument(rest);
    if (value !== "") values.set(parameter.name, unquote(value));
    rest = after;
  }
  for (const { name: parameter, kind, fallback } of parameters) {
    if (kind === "required" && !values.has(parameter))
      fail(`macro '${name}' needs its argument '${parameter}'`);
    if (!values.has(parameter)) values.set(parameter, fallback);
  }
  return values;
}

function splitArguments(text: string): string[] {
  const pieces: string[] = [];
  let rest = text.trim();
  while (rest !== "") {
    const [piece, after] = takeArgument(rest);
    pieces.push(piece);
    rest = after;
  }
  return pieces;
}

/** The first argument of `text`, blanks around operators dropped, and what follows its comma or blank. */
function takeArgument(text: string): [argument: string, rest: string] {
  let out = "";
  let depth = 0;
  let i = 0;
  for (; i < text.length; i++) {
    const char = text[i]!;
    if (char === ",") return [out, text.slice(i + 1).trim()];
    if (char === '"' || char === "'") {
      const end = char === '"' ? endOfString(text, i) : endOfCharacter(text, i);
      if (end < 0) fail("string without an end");
      out += text.slice(i, end);
      i = end - 1;
    } else if (char !== " ") {
      if (char === "(") depth++;
      if (char === ")") depth--;
      out += char;
    } else if (/^\s*,/.test(text.slice(i))) {
      return [out, text.slice(text.indexOf(",", i) + 1).trim()];
    } else if (out !== "" && separates(out.at(-1)!, text[i + 1]!)) {
      if (depth <= 0) return [out, text.slice(i + 1).trim()];
      out += char;
    }
  }
  return [out, ""];
}

/** Whether a blank between these two characters ends an argument: both may be part of an operand. */
function separates(before: string, after: string): boolean {
  const part = /[\w.$"\\*%\-([{}]/;
  return part.test(before) && part.test(after);
}

function unquote(text: string): string {
  return /^"(?:[^"\\]|\\.)*"$/s.test(text) ? text.slice(1, -1) : text;
}
