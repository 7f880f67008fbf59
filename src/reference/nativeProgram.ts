// Assembly sources of the package as programs of this host: static ELF64 executables of our own making.
//
// One segment, readable and executable, with the headers at its start (System V gABI, chapters 4 and 5). The sources
// are one position-independent .text, entered at its first byte. Assembled here: no toolchain is needed.

import { readPackageFile } from "../base/file.ts";
import { bug } from "../base/refuse.ts";
import { assemble } from "../x86/assemble.ts";

const HEADERS = 64 + 56;
const assembled = new Map<string, Promise<Uint8Array>>();

/** The executable file of the source at `path` in the package, to be mapped at `address`. */
export async function nativeProgram(path: string, address: bigint): Promise<Uint8Array> {
  let text = assembled.get(path);
  if (text === undefined) {
    text = assembleText(path);
    assembled.set(path, text);
  }
  return executable(await text, address);
}

async function assembleText(path: string): Promise<Uint8Array> {
  const { sections } = await assemble(path, new TextDecoder().decode(readPackageFile(path)));
  const found = sections.find(({ name }) => name === ".text");
  if (found === undefined || found.relocations.length > 0)
    return bug(`${path} must be one .text without relocations`);
  return found.bytes;
}

function executable(text: Uint8Array, address: bigint): Uint8Array {
  const file = new Uint8Array(HEADERS + text.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // ELF, 64 bits, little-endian, version 1
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, address + BigInt(HEADERS), true);
  view.setBigUint64(32, 64n, true); // the program headers follow
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint16(58, 64, true);

  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 5, true); // readable, executable
  view.setBigUint64(80, address, true);
  view.setBigUint64(88, address, true);
  view.setBigUint64(96, BigInt(file.length), true);
  view.setBigUint64(104, BigInt(file.length), true);
  view.setBigUint64(112, 0x1000n, true);
  file.set(text, HEADERS);
  return file;
}
