// fentrylab disasm IMAGE [SYMBOL]

import { hex } from "../base/addr.ts";
import { hexBytes } from "../base/bytes.ts";
import { refuse } from "../base/refuse.ts";
import type { Image } from "../image/image.ts";
import type { ImageSymbol } from "../image/symbolTable.ts";
import { Lab } from "../lab.ts";
import { formatLines, type Line, loadDisassembler } from "../x86/disassemble.ts";
import { functionOf, type ImageOptions, isCode, loadImage } from "./image.ts";
import { type CommonOptions, printJson } from "./option.ts";

export async function printDisassembly(
  path: string,
  name: string | undefined,
  { json, ...others }: CommonOptions & ImageOptions,
): Promise<void> {
  const lab = await Lab.open();
  const image = await loadImage(lab, path, others);
  const disassembler = await loadDisassembler();
  const listings = (name === undefined ? functionsOf(image, path) : [functionOf(image, name)]).map(
    (symbol) => ({
      symbol,
      lines: disassembler.disassemble(image.functionBytes(symbol), symbol.address, (at) => place(lab, at)),
    }),
  );
  if (json) {
    printJson({
      functions: listings.map(({ symbol, lines }) => ({
        symbol: symbol.name,
        address: hex(symbol.address),
        lines: lines.map(plain),
      })),
    });
    return;
  }
  for (const { symbol, lines } of listings) {
    process.stdout.write(`${hex(symbol.address)} <${symbol.name}>:\n${formatLines(lines).join("\n")}\n\n`);
  }
}

/** Labels in code count: assembly need not say what is a function. */
function functionsOf(image: Image, path: string): ImageSymbol[] {
  const found = image.symbols.filter((symbol) => symbol.size > 0 && isCode(image, symbol));
  return found.length > 0 ? found : refuse("no-functions", { file: path });
}

function plain({ at, bytes, text }: Line): { address: string; bytes: string; text: string } {
  return { address: hex(at), bytes: hexBytes(bytes), text };
}

/** `vfs_read` at its start, `vfs_read+0x12` within. */
function place(lab: Lab, at: Line["at"]): string | undefined {
  const found = lab.code.symbolAt(at);
  if (found === undefined) return undefined;
  return found.offset === 0 ? found.symbol.name : `${found.symbol.name}+0x${found.offset.toString(16)}`;
}
