// A static ELF64 executable around one piece of position-independent code.
//
// One segment, readable and executable, file offset 0 at LOAD_ADDRESS (System V gABI, chapters 4 and 5).

/** Where the file is mapped. */
const LOAD_ADDRESS = 0x40_0000;
const HEADERS = 64 + 56;
/** Where the code's first byte is, which is also the entry point. */
const TEXT_ADDRESS = LOAD_ADDRESS + HEADERS;

/** The executable file of `text`, which is entered at its first byte. */
export function executable(text: Uint8Array): Uint8Array {
  const file = new Uint8Array(HEADERS + text.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]); // ELF, 64 bits, little-endian, version 1
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(TEXT_ADDRESS), true);
  view.setBigUint64(32, 64n, true); // the program headers follow
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint16(58, 64, true);

  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 5, true); // readable, executable
  view.setBigUint64(80, BigInt(LOAD_ADDRESS), true);
  view.setBigUint64(88, BigInt(LOAD_ADDRESS), true);
  view.setBigUint64(96, BigInt(file.length), true);
  view.setBigUint64(104, BigInt(file.length), true);
  view.setBigUint64(112, 0x1000n, true);
  file.set(text, HEADERS);
  return file;
}
