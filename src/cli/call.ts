// fentrylab call IMAGE FUNCTION [ARGUMENT...]

import { word } from "../base/word.ts";
import { Lab } from "../lab.ts";
import { type ImageOptions, loadImage } from "./image.ts";
import { type CommonOptions, printJson } from "./option.ts";

export async function printCall(
  path: string,
  name: string,
  args: readonly string[],
  { json, budget, ...others }: CommonOptions & ImageOptions & { readonly budget: number },
): Promise<void> {
  const words = args.map(word);
  const lab = await Lab.open();
  const image = await loadImage(lab, path, others);
  // An unknown name is the image's to refuse: it suggests one of its own.
  const target = image.find(name) ?? lab.image.find(name) ?? image.symbol(name);
  const { result, instructions } = lab.call(target.address, words, { budget });
  const hexadecimal = `0x${result.toString(16)}`;
  if (json) {
    printJson({
      function: name,
      arguments: words.map((value) => `0x${value.toString(16)}`),
      result: hexadecimal,
      instructions,
    });
    return;
  }
  const signed = BigInt.asIntN(64, result);
  process.stdout.write(
    `${name}(${args.join(", ")}) = ${signed} (${hexadecimal}), ${instructions} instructions\n`,
  );
}
