// Assembler expressions: parsing, and evaluation to a number plus symbols.
//
// Operators, their ranks and their arithmetic are GNU as's, which are not C's: `1<<2+1` is 5, `|` binds
// tighter than `+`, comparisons give -1, division is signed and `>>` is not. Values are 64-bit, wrapping.
// Only sums and differences may hold symbols; whether two labels cancel is asked from the caller.

import { Fault, fail } from "./fault.ts";
import { endOfCharacter } from "./source.ts";
import type { SourceSymbol } from "./symbol.ts";

export type Expression =
  | { readonly kind: "number"; readonly value: bigint }
  | { readonly kind: "symbol"; readonly symbol: SourceSymbol }
  | { readonly kind: "unary"; readonly operator: string; readonly of: Expression }
  | {
      readonly kind: "binary";
      readonly operator: string;
      readonly left: Expression;
      readonly right: Expression;
    };

/** `number` plus the symbols of `plus` less those of `minus`. */
export interface Value {
  readonly number: bigint;
  readonly plus: readonly SourceSymbol[];
  readonly minus: readonly SourceSymbol[];
}

/** `a - b` in bytes, or null while that is not known or never will be. */
export type Distance = (a: SourceSymbol, b: SourceSymbol) => bigint | null;

/** Binary operators by rank, loosest first. */
const RANKS: readonly (readonly string[])[] = [
  ["||"],
  ["&&"],
  ["==", "<>", "!=", "<=", ">=", "<", ">"],
  ["+", "-"],
  ["|", "&", "^", "!"],
  ["*", "/", "%", "<<", ">>"],
];

const wrap = (value: bigint): bigint => BigInt.asIntN(64, value);
const unsigned = (value: bigint): bigint => BigInt.asUintN(64, value);
const truth = (holds: boolean): bigint => (holds ? -1n : 0n);

const ARITHMETIC: Record<string, (a: bigint, b: bigint) => bigint> = {
  "||": (a, b) => (a !== 0n || b !== 0n ? 1n : 0n),
  "&&": (a, b) => (a !== 0n && b !== 0n ? 1n : 0n),
  "==": (a, b) => truth(a === b),
  "<>": (a, b) => truth(a !== b),
  "!=": (a, b) => truth(a !== b),
  "<=": (a, b) => truth(a <= b),
  ">=": (a, b) => truth(a >= b),
  "<": (a, b) => truth(a < b),
  ">": (a, b) => truth(a > b),
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "|": (a, b) => a | b,
  "&": (a, b) => a & b,
  "^": (a, b) => a ^ b,
  "!": (a, b) => a | ~b,
  "*": (a, b) => a * b,
  "/": (a, b) => (b === 0n ? fail("division by zero") : a / b),
  "%": (a, b) => (b === 0n ? fail("division by zero") : a % b),
  "<<": (a, b) => a << shiftCount(b),
  ">>": (a, b) => unsigned(a) >> shiftCount(b),
};

const UNARY: Record<string, (a: bigint) => bigint> = {
  "-": (a) => -a,
  "+": (a) => a,
  "~": (a) => ~a,
  "!": (a) => (a === 0n ? 1n : 0n),
};

function shiftCount(count: bigint): bigint {
  return count >= 0n && count < 64n ? count : fail(`shift count ${count} is not between 0 and 63`);
}

export const numberExpression = (value: bigint): Expression => ({ kind: "number", value });

const TOKEN =
  /\s*(0[xX][0-9a-fA-F]+|0[bB][01]+(?![0-9bf])|\d+[bf](?![\w.$])|\d+|[A-Za-z_.$][\w.$]*(?:@\w+)?|\|\||&&|==|<>|!=|<=|>=|<<|>>|[-+*/%&|^~!()<>])/y;

/** Splits `text`; strings of tokens keep their spelling. Throws Fault at the first character that starts none. */
function tokenize(text: string): string[] {
  const tokens: string[] = [];
  for (let at = 0; at < text.length; ) {
    if (text.slice(at).trim() === "") break;
    TOKEN.lastIndex = at;
    const match = TOKEN.exec(text);
    if (match) {
      tokens.push(match[1]!);
      at = TOKEN.lastIndex;
      continue;
    }
    const quote = at + text.slice(at).search(/\S/);
    if (text[quote] !== "'" || quote + 1 >= text.length)
      fail(`cannot read '${text.slice(quote)}' in an expression`);
    at = endOfCharacter(text, quote);
    tokens.push(text.slice(quote, at));
  }
  return tokens;
}

const CHARACTERS: Record<string, string> = {
  "\\n": "\n",
  "\\t": "\t",
  "\\r": "\r",
  "\\b": "\b",
  "\\f": "\f",
};

function numberOf(token: string): bigint | null {
  if (token.startsWith("'")) {
    const body = /^'(\\.|.)'?$/su.exec(token)?.[1] ?? fail(`cannot read the character ${token}`);
    const char = CHARACTERS[body] ?? body.replace(/^\\(?=.)/, "");
    return BigInt(char.codePointAt(0)!);
  }
  if (!/^\d/.test(token)) return null;
  if (/^0\d/.test(token))
    return /^[0-7]+$/.test(token) ? BigInt(`0o${token}`) : fail(`'${token}' is not an octal number`);
  if (/[bf]$/.test(token) && !/^0x/i.test(token)) return null;
  return BigInt(token);
}

/**
 * The expression that `text` spells. `name` gives the meaning of each name in it: a symbol, `.`, `1b`, `1f`,
 * or a name with a suffix such as `memcpy@PLT`. Throws Fault on anything that is not one whole expression.
 */
export function parseExpression(text: string, name: (name: string) => Expression): Expression {
  const tokens = tokenize(text);
  let next = 0;
  const primary = (): Expression => {
    const token =
      tokens[next++] ?? fail(tokens.length === 0 ? "expected an expression" : `'${text}' ends too early`);
    if (token === "(") {
      const inner = ranked(0);
      if (tokens[next++] !== ")") fail(`missing ')' in '${text}'`);
      return inner;
    }
    if (token in UNARY) return fold({ kind: "unary", operator: token, of: primary() });
    const value = numberOf(token);
    if (value !== null) return numberExpression(wrap(value));
    return /^[\w.$]/.test(token)
      ? name(token)
      : fail(`'${token}' where a number or a name should be, in '${text}'`);
  };
  const ranked = (rank: number): Expression => {
    const operators = RANKS[rank];
    if (!operators) return primary();
    let left = ranked(rank + 1);
    while (next < tokens.length && operators.includes(tokens[next]!)) {
      const operator = tokens[next++]!;
      left = fold({ kind: "binary", operator, left, right: ranked(rank + 1) });
    }
    return left;
  };
  const whole = ranked(0);
  if (next < tokens.length) fail(`'${tokens[next]}' is left over in '${text}'`);
  return whole;
}

/** `expression` as a number where it holds no symbol; division by zero and such are reported here. */
function fold(expression: Expression): Expression {
  if (expression.kind === "unary" && expression.of.kind === "number")
    return numberExpression(wrap(UNARY[expression.operator]!(expression.of.value)));
  if (expression.kind === "binary" && expression.left.kind === "number" && expression.right.kind === "number")
    return numberExpression(
      wrap(ARITHMETIC[expression.operator]!(expression.left.value, expression.right.value)),
    );
  return expression;
}

/**
 * What `expression` comes to. Symbols with a value of their own (`.set`) are followed, labels are kept unless
 * `distance` cancels them in pairs. Throws Fault where an operator other than + and - would have to take a symbol.
 */
export function evaluate(expression: Expression, distance: Distance, depth = 0): Value {
  if (expression.kind === "number") return { number: expression.value, plus: [], minus: [] };
  if (expression.kind === "symbol") {
    const { symbol } = expression;
    if (depth > 100) fail(`'${symbol.name}' is defined by itself`);
    if (symbol.value && symbol.binding !== "weak") return evaluate(symbol.value, distance, depth + 1);
    return { number: 0n, plus: [symbol], minus: [] };
  }
  if (expression.kind === "unary") {
    const of = evaluate(expression.of, distance, depth + 1);
    if (expression.operator === "-") return { number: wrap(-of.number), plus: of.minus, minus: of.plus };
    return { number: wrap(UNARY[expression.operator]!(absolute(of))), plus: [], minus: [] };
  }
  const left = evaluate(expression.left, distance, depth + 1);
  const right = evaluate(expression.right, distance, depth + 1);
  const { operator } = expression;
  if (operator === "+")
    return cancel(
      left.number + right.number,
      [...left.plus, ...right.plus],
      [...left.minus, ...right.minus],
      distance,
    );
  const less = (): Value =>
    cancel(
      left.number - right.number,
      [...left.plus, ...right.minus],
      [...left.minus, ...right.plus],
      distance,
    );
  if (operator === "-") return less();
  if (RANKS[2]!.includes(operator) && (left.plus.length > 0 || right.plus.length > 0))
    return { number: ARITHMETIC[operator]!(absolute(less()), 0n), plus: [], minus: [] };
  return { number: wrap(ARITHMETIC[operator]!(absolute(left), absolute(right))), plus: [], minus: [] };
}

/** The number that `value` is. Throws Fault when symbols are left in it. */
export function absolute(value: Value): bigint {
  const symbol = value.plus[0] ?? value.minus[0];
  return symbol
    ? fail(`'${symbol.name}' is not a number here: its address is not known, or not until linking`)
    : value.number;
}

function cancel(
  number: bigint,
  plus: readonly SourceSymbol[],
  minus: readonly SourceSymbol[],
  distance: Distance,
): Value {
  let sum = number;
  const left = [...plus];
  const right = minus.filter((b) => {
    const i = left.findIndex((a) => a === b || distance(a, b) !== null);
    if (i < 0) return true;
    const [a] = left.splice(i, 1);
    if (a !== b) sum += distance(a!, b)!;
    return false;
  });
  return { number: wrap(sum), plus: left, minus: right };
}

/** `evaluate`, as a number; null where it depends on something that is not known. */
export function tryAbsolute(expression: Expression, distance: Distance): bigint | null {
  if (expression.kind === "number") return expression.value;
  try {
    const value = evaluate(expression, distance);
    return value.plus.length + value.minus.length === 0 ? value.number : null;
  } catch (error) {
    if (error instanceof Fault) return null;
    throw error;
  }
}
